# Boot sector (and the one behind it) of a guest whose vCPUs carry set loads.
#
# Every vCPU repeats a period of 20 ms: it burns CPU until it has burnt its share of the period, then halts for the
# rest. Burnt time is counted from one reading of the time-stamp counter to the next. A jump of more than 0.6 ms means
# that the host ran something else meanwhile; it is not counted, so a vCPU demands the same work however much it has to
# wait. A period that overruns is followed by the next at once, and beyond one period nothing is made up for, so that
# waiting delays the work but leaves no burst behind. Share 1000 never halts.
#
#   as --32 -o duty.o duty.S
#   ld -m elf_i386 --oformat binary -Ttext 0x7c00 -o duty.img duty.o
#
# The words behind the marker "duty" are for the one who writes the image to fill in: when to step, then for each vCPU,
# by APIC id, its share before and after that step. The table of shares reaches to the end of the second sector.

.set APIC, 0xfee00000
.set APIC_ID, 0x20
.set APIC_END_OF_INTERRUPT, 0xb0
.set APIC_SPURIOUS, 0xf0
.set APIC_COMMAND, 0x300
.set APIC_DESTINATION, 0x310
.set APIC_TIMER, 0x320
.set APIC_INITIAL_COUNT, 0x380
.set APIC_CURRENT_COUNT, 0x390
.set APIC_DIVIDER, 0x3e0

.set VECTOR, 0x20               # the only interrupt there is
.set START_PAGE, 0x8            # where a woken vCPU begins: 0x8000
.set STACKS, 0x9000             # of each vCPU by APIC id; in its last word, at the lowest address, it counts its work
.set STACK_BYTES, 64            # a cache line, so that no vCPU waits for another one's count
.set PERIOD_NS, 20000000
.set SPINS, 5000                # between two readings of the counter: some microseconds
.set CLEAN_READ_TICKS, 1 << 18  # a slower reading of both clocks was interrupted (0.1 ms or so)

.globl _start
.code16
_start:
  xor %ax, %ax
  mov %ax, %ds
  mov %ax, %es
  mov %ax, %ss
  mov $_start, %sp
  mov $0x0201, %ax              # read one sector,
  mov $0x0002, %cx              # the second,
  mov $0, %dh                   # from the drive the BIOS left in dl,
  mov $second_sector, %bx       # to right behind the first
  int $0x13
start_code:
  ljmp $0, $entry               # BIOS and start-up interrupt come with different segments
start_code_end:

entry:                          # each vCPU comes by here, the first one alone
  cli
  xor %ax, %ax
  mov %ax, %ds
  lgdtl gdt_pointer
  mov %cr0, %eax
  or $1, %al
  mov %eax, %cr0
  ljmp $8, $protected

.code32
protected:
  mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  lidt idt_pointer
  mov $0xff, %al                # the old interrupt controllers stay out of it
  out %al, $0x21
  out %al, $0xa1
  mov $APIC, %ebx
  movl $(0x100 + VECTOR), APIC_SPURIOUS(%ebx)
  movl $0xb, APIC_DIVIDER(%ebx) # divide by 1: one count is 1 ns
  movl $VECTOR, APIC_TIMER(%ebx)
  mov APIC_ID(%ebx), %edi
  shr $24, %edi
  mov %edi, %eax
  shl $6, %eax                  # times STACK_BYTES
  lea STACKS + STACK_BYTES(%eax), %esp
  cmpl $0, period_ticks
  jne begin

# The first vCPU measures the time-stamp counter against the timer, and says when to step.
  mov $start_code, %esi
  mov $(START_PAGE << 12), %edi
  mov $(start_code_end - start_code), %ecx
  rep movsb
  movl $-1, APIC_INITIAL_COUNT(%ebx)
  call read_clocks
  mov %eax, %esi
  mov %ecx, %ebp
1:
  call read_clocks
  mov %ebp, %edx
  sub %ecx, %edx                # ns
  cmp $PERIOD_NS, %edx
  jb 1b
  mov %edx, %ecx
  sub %esi, %eax                # ticks
  mov $PERIOD_NS, %edx
  mul %edx
  div %ecx
  mov %eax, period_ticks
  mov %eax, %ecx
  shr $5, %eax
  mov %eax, jump_ticks
  rdtsc
  mov %eax, %esi
  mov %edx, %ebp
  mov step_periods, %eax
  test %eax, %eax
  jz 2f                         # never: step_at keeps the end of time
  mul %ecx
  add %esi, %eax
  adc %ebp, %edx
  mov %eax, step_at
  mov %edx, step_at + 4
2:
  xor %edi, %edi

begin:                          # edi: APIC id
  lea 1(%edi), %eax
  mov %eax, next_id
  lea shares(, %edi, 4), %edi
  rdtsc
  mov %eax, %ebp

# edi: entry in the table; ebp: when the period began; esi: the reading before; ecx: ticks still to burn
period:
  cmp $shares, %edi
  jne 1f
  mov next_id, %eax             # the first vCPU wakes the next one, also one that is plugged in much later
  shl $24, %eax
  mov %eax, APIC_DESTINATION(%ebx)
  movl $0x4500, APIC_COMMAND(%ebx)
  movl $(0x4600 + START_PAGE), APIC_COMMAND(%ebx)
1:
  rdtsc
  mov %eax, %esi
  movzwl (%edi), %ecx
  cmp step_at, %eax
  sbb step_at + 4, %edx
  jb 2f
  movzwl 2(%edi), %ecx
2:
  mov period_ticks, %eax
  mul %ecx
  mov $1000, %ecx
  div %ecx
  mov %eax, %ecx
burn:
  test %ecx, %ecx
  jle rest
  mov $SPINS, %eax              # QEMU reads the counter under a lock that its vCPUs share, so if they did little else,
1:                              # one that lost its CPU there would keep the others busy waiting
  dec %eax
  jnz 1b
  incl -STACK_BYTES(%esp)       # work done, whichever ran meanwhile; nothing lies on the stack here
  rdtsc
  mov %eax, %edx
  sub %esi, %eax
  mov %edx, %esi
  cmp jump_ticks, %eax
  ja burn
  sub %eax, %ecx
  jmp burn
rest:
  rdtsc
  sub %ebp, %eax
  mov period_ticks, %ecx
  sub %eax, %ecx
  jbe over
  mov %ecx, %eax
  mov $PERIOD_NS, %edx
  mul %edx
  divl period_ticks
  inc %eax                      # a count of 0 would stop the timer
  mov %eax, APIC_INITIAL_COUNT(%ebx)
  sti
  hlt
  cli
  jmp rest
over:
  neg %ecx
  cmp period_ticks, %ecx
  ja 1f
  add period_ticks, %ebp        # less than a period late: keep the pace
  jmp period
1:
  add %eax, %ebp                # later than that: begin anew
  jmp period

# eax: ticks, ecx: count of the timer, both of the same moment
read_clocks:
  rdtsc
  mov %eax, %edi
  mov APIC_CURRENT_COUNT(%ebx), %ecx
  rdtsc
  mov %eax, %edx
  sub %edi, %edx
  cmp $CLEAN_READ_TICKS, %edx
  ja read_clocks
  ret

interrupt:
  movl $0, APIC + APIC_END_OF_INTERRUPT
  iret

  .org 510
  .word 0xaa55
second_sector:
gdt_pointer:
  .word 23
  .long gdt
idt_pointer:
  .word VECTOR * 8 + 7
  .long gate - VECTOR * 8       # no fault is expected, so what lies before the gate does not matter
gdt:
  .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gate:
  .word interrupt               # right below 64 KiB
  .word 8, 0x8e00, 0
period_ticks:
  .long 0                       # 0 until the first vCPU has measured it
jump_ticks:
  .long 0
next_id:
  .long 0
step_at:
  .quad -1

  .ascii "duty"
step_periods:
  .long 0                       # 0: never
shares:                         # per mille of a CPU: before, after
  .org 1024
