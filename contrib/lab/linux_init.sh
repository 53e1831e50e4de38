#!/bin/busybox sh
# Init of the lab's Linux guest: starts the load that the kernel command line asks for
# (stress_workers=N, stress_load=PERCENT), then reports the guest's own CPU accounting on the
# console, one line every two seconds:
#   STAT <uptime> cpu0 <user> <nice> <system> <idle> <iowait> <irq> <softirq> <steal> ... cpu1 ...
# The loop uses what is built into the shell only: under emulation a fork costs milliseconds, and
# what this script burns falsifies what it measures.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs tmp /tmp
exec </dev/console >/dev/console 2>&1

stress_workers=0 stress_load=100
read -r command_line </proc/cmdline
for word in $command_line; do
  case $word in
    stress_workers=*) stress_workers=${word#*=} ;;
    stress_load=*) stress_load=${word#*=} ;;
  esac
done

if [ "$stress_workers" -gt 0 ]; then
  # A slice of 20 ms holds many loops even when emulated. By default stress-ng counts loops
  # instead, which makes slices so short that its own timekeeping adds to the load.
  stress-ng --cpu "$stress_workers" --cpu-method int64 --cpu-load "$stress_load" \
    --cpu-load-slice 20 --timeout 0 --temp-path /tmp &
fi

# Nothing ever writes to this pipe, so a timed read of it is a sleep without a fork.
/bin/busybox mkfifo /tmp/never
exec 3<>/tmp/never
while :; do
  line=
  {
    read -r _
    while read -r name times && [ "${name#cpu}" != "$name" ]; do
      line="$line $name $times"
    done
  } </proc/stat
  read -r uptime _ </proc/uptime
  echo "STAT $uptime$line"
  read -r -t 2 _ <&3
done
