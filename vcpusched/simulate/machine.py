"""The pCPUs of a simulated host: who runs where, and who waits, from one event to the next.

Rule: knows threads and pCPUs only, neither guests nor libvirt nor the scheduler. Time and work are
whole nanoseconds and nothing depends on chance or on the order of a set, so equal input gives an
equal run. The state is the only one in the simulator that changes while time passes.

Problem: what pinning costs is decided in milliseconds, where bursts of vCPUs on one pCPU collide;
    with 256 vCPUs, stepping every pCPU through every millisecond takes too long.
Approach: from event to event instead. In between, the runnable threads of a pCPU stay the same and
    share it by weight, so one step accounts for all of that time.
Terms: a burst is work that arrives at one moment, in ns of the strongest pCPU; a thread is runnable
    until its work is done. A crowded pCPU has several runnable threads, one of which at least may
    use other pCPUs too. The speed of a pCPU is the work that it does in a ns: its capacity, but
    while n pCPUs of its core are busy (then its siblings are), (3 + n) / 4n of that: each further
    one adds a quarter. What a pCPU is worth is what work on it adds to that of its core: its
    capacity, beside busy siblings a quarter of it.
Algorithm: take the next of: a burst arrives, a pCPU's first thread is done, a slice ends while a
    pCPU is crowded. A thread that wakes goes where it last ran if that is idle, else to an idle
    pCPU, else to where the least weight is. A pCPU that falls idle takes a waiting thread at once.
    At each end of a slice, of each crowded pCPU the thread that has been there longest moves to
    the pCPU with the least weight, unless it would be worse off there; so waiting goes round.
    Where pCPUs differ, or are siblings, of idle ones that is chosen which is worth most, of busy
    ones that with the least weight for its speed; and a thread that runs alone moves to an idle
    pCPU which is worth more than its own, when that falls idle or a sibling of its own wakes.
Properties: a thread never runs on two pCPUs at once, nor outside its affinity; a pCPU never idles
    while one that may use it waits; at full speed run and left work add up to what arrived; the
    run times on a pCPU never exceed the time. The kernel takes a little longer to spread threads:
    the simulation errs in favour of the unpinned.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from vcpusched.model import PPM, CpuSet

SLICE_NS: Final = 10_000_000
"""How long a crowded pCPU's threads stay together at most."""

_NEVER: Final = 1 << 62

FURTHER_THREAD_PERCENT: Final = 25
"""What each further busy thread adds to what a core does, in percent of one that is alone. Defined
here as well, because the simulation must not judge the planner by the planner's own constant."""


@dataclass(slots=True, eq=False)
class VcpuThread:
    """One vCPU's thread. The counters grow for as long as it lives.

    `affinity` are the bits of the pCPUs that it may use, `on` is the one that it runs on, or ran on
    last. `left_ns` is work, `run_ns` and `wait_ns` are time.
    """

    index: int
    weight: int
    affinity: int
    on: int
    left_ns: int = 0
    run_ns: int = 0
    wait_ns: int = 0

    @property
    def floats(self) -> bool:
        """Return whether it may use several pCPUs."""
        return bool(self.affinity & (self.affinity - 1))


@dataclass(slots=True, eq=False)
class _Queue:
    """The runnable threads of one pCPU, those that came first in front.

    `capacity` is what it does when its siblings idle, in ppm of the strongest pCPU. `speed` is
    that of it if it is busy, `worth` as it would be if it were not. `version` counts the changes
    of `runnable`: what was predicted before one is void.
    """

    cpu: int
    capacity: int
    speed: int
    worth: int
    siblings: "tuple[_Queue, ...]" = ()
    runnable: list[VcpuThread] = field(default_factory=list)
    since_ns: int = 0
    used_ns: int = 0
    weight: int = 0
    version: int = 0

    def beside(self) -> None:
        """Note how many of its siblings are busy."""
        busy = sum(bool(sibling.runnable) for sibling in self.siblings)
        self.speed = self.worth = self.capacity
        if busy:
            together = 100 + FURTHER_THREAD_PERCENT * busy
            self.speed = max(1, self.capacity * together // (100 * (busy + 1)))
            self.worth = self.capacity * FURTHER_THREAD_PERCENT // 100

    def for_speed(self, weight: int) -> int:
        """Return the weight that would mean the same on a pCPU of full speed."""
        return weight * PPM // self.speed


class Machine:
    """All pCPUs of a host, from 0 on; time passes only in `run`.

    `cores` are the numbers of pCPUs that are siblings, each pCPU in one core at most;
    `capacities_ppm` what each pCPU can do, above 0 and up to a million; by default all of them.
    """

    def __init__(
        self,
        cpu_count: int,
        slice_ns: int = SLICE_NS,
        *,
        cores: Iterable[Iterable[int]] = (),
        capacities_ppm: Sequence[int] = (),
    ) -> None:
        capacities = capacities_ppm or [PPM] * cpu_count
        self._queues = [_Queue(cpu, can, can, can) for cpu, can in enumerate(capacities)]
        for core in cores:
            for cpu in core:
                others = (self._queues[other] for other in core if other != cpu)
                self._queues[cpu].siblings = tuple(others)
        self._even = all(queue.capacity == PPM and not queue.siblings for queue in self._queues)
        self._slice_ns = slice_ns
        self._idle = (1 << cpu_count) - 1
        self._crowded = 0
        self._done: list[tuple[int, int, int]] = []
        self.now_ns = 0

    def used_ns(self) -> list[int]:
        """Return how long each pCPU has been busy since the beginning."""
        return [queue.used_ns for queue in self._queues]

    def run(self, until_ns: int, bursts: Iterable[tuple[int, int, VcpuThread]]) -> None:
        """Let time pass; `bursts` are (moment, work in ns, thread), in the order of moments.

        At the end no thread is runnable: what is left of a thread's work stays in its `left_ns`.
        """
        arriving = iter(bursts)
        burst = next(arriving, None)
        tick_ns = self.now_ns + self._slice_ns
        while True:
            done_ns = self._done[0][0] if self._done else _NEVER
            burst_ns = burst[0] if burst is not None else _NEVER
            at_ns = min(done_ns, burst_ns)
            if self._crowded:
                if tick_ns < self.now_ns:
                    tick_ns = self.now_ns - self.now_ns % self._slice_ns + self._slice_ns
                at_ns = min(at_ns, tick_ns)
            if at_ns >= until_ns:
                break
            self.now_ns = at_ns
            if done_ns == at_ns:
                _, cpu, version = heapq.heappop(self._done)
                if version == self._queues[cpu].version:
                    self._retire(self._queues[cpu])
            elif burst is not None and burst_ns == at_ns:
                self._arrive(burst[2], burst[1])
                burst = next(arriving, None)
            else:
                tick_ns += self._slice_ns
                self._rotate()
        self.now_ns = until_ns
        self._stop()

    def _stop(self) -> None:
        for queue in self._queues:
            self._settle(queue)
            queue.runnable.clear()
            queue.weight = 0
            queue.speed = queue.worth = queue.capacity
        self._idle = (1 << len(self._queues)) - 1
        self._crowded = 0
        self._done.clear()

    def _settle(self, queue: _Queue) -> None:
        """Account for the time since the last change of a pCPU's runnable threads."""
        passed_ns = self.now_ns - queue.since_ns
        queue.since_ns = self.now_ns
        if not passed_ns or not queue.runnable:
            return
        queue.used_ns += passed_ns
        speed, weight = queue.speed, queue.weight
        for thread in queue.runnable:
            # What whole nanoseconds cannot share is lost: less than one per thread and event.
            run_ns = passed_ns * thread.weight // weight
            thread.left_ns -= passed_ns * thread.weight * speed // (weight * PPM)
            thread.run_ns += run_ns
            thread.wait_ns += passed_ns - run_ns

    def _changed(self, queue: _Queue) -> None:
        """Take note of a pCPU's new runnable threads, and predict when the first is done."""
        bit, runnable = 1 << queue.cpu, queue.runnable
        was_idle = self._idle & bit
        self._idle = self._idle & ~bit | (0 if runnable else bit)
        crowded = len(runnable) > 1 and any(thread.affinity != bit for thread in runnable)
        self._crowded = self._crowded & ~bit | (bit if crowded else 0)
        if queue.siblings and was_idle != self._idle & bit:
            for sibling in queue.siblings:
                self._settle(sibling)
                sibling.beside()
                self._predict(sibling)
        self._predict(queue)

    def _predict(self, queue: _Queue) -> None:
        queue.version += 1
        runnable, weight = queue.runnable, queue.weight
        if not runnable:
            return
        # Rounded up, and what is done down: no thread gets more than is left.
        first_ns = min(
            -(-thread.left_ns * weight * PPM // (thread.weight * queue.speed))
            for thread in runnable
        )
        heapq.heappush(self._done, (self.now_ns + first_ns, queue.cpu, queue.version))

    def _arrive(self, thread: VcpuThread, work_ns: int) -> None:
        if thread.left_ns:
            queue = self._queues[thread.on]
            self._settle(queue)
            thread.left_ns += work_ns
            self._changed(queue)
        else:
            thread.left_ns = work_ns
            self._enter(thread, self._choose(thread))

    def _enter(self, thread: VcpuThread, cpu: int) -> None:
        thread.on = cpu
        queue = self._queues[cpu]
        self._settle(queue)
        queue.runnable.append(thread)
        queue.weight += thread.weight
        self._changed(queue)
        if self._crowded >> queue.cpu & 1 and self._idle:
            for other in tuple(queue.runnable):
                if other.affinity & self._idle and len(queue.runnable) > 1:
                    self._leave(other)
                    self._enter(other, self._choose(other))
        for sibling in queue.siblings:
            if len(sibling.runnable) == 1 and sibling.runnable[0].floats:
                self._go_up(sibling.runnable[0], sibling.runnable[0].affinity & self._idle)

    def _go_up(self, thread: VcpuThread, idle: int) -> None:
        """Move a thread that runs alone to an idle pCPU that is worth more, if there is one.

        Each such move adds to the work of all pCPUs, so there is an end to them.
        """
        target = self._choose_of(idle, thread) if idle else thread.on
        if self._queues[target].worth > self._queues[thread.on].worth:
            before = self._queues[thread.on]
            self._leave(thread)
            self._enter(thread, target)
            if not before.runnable:
                self._lift(before)

    def _leave(self, thread: VcpuThread) -> None:
        queue = self._queues[thread.on]
        self._settle(queue)
        queue.runnable.remove(thread)
        queue.weight -= thread.weight
        self._changed(queue)

    def _choose(self, thread: VcpuThread) -> int:
        if not thread.floats:
            return thread.affinity.bit_length() - 1
        idle = thread.affinity & self._idle
        return self._choose_of(idle, thread) if idle else self._lightest(thread)

    def _choose_of(self, idle: int, thread: VcpuThread) -> int:
        """Return the idle pCPU that is worth most, where it was or else the next upwards."""
        if not self._even:
            cpus = CpuSet(idle)
            most = max(self._queues[cpu].worth for cpu in cpus)
            idle = sum(1 << cpu for cpu in cpus if self._queues[cpu].worth == most)
        return _next_bit(idle, thread.on)

    def _lightest(self, thread: VcpuThread, without: int | None = None) -> int:
        """Return the allowed pCPU with the least runnable weight, of several the next upwards."""

        def rank(cpu: int) -> tuple[int, bool, int]:
            queue = self._queues[cpu]
            return queue.for_speed(queue.weight), cpu < thread.on, cpu

        cpus = (cpu for cpu in CpuSet(thread.affinity) if cpu != without)
        return min(cpus, key=rank, default=thread.on)

    def _retire(self, queue: _Queue) -> None:
        """Take those who are done off a pCPU; one that falls idle takes a waiting thread."""
        self._settle(queue)
        queue.runnable = [thread for thread in queue.runnable if thread.left_ns > 0]
        queue.weight = sum(thread.weight for thread in queue.runnable)
        self._changed(queue)
        if not queue.runnable and self._crowded:
            self._pull(queue.cpu)
        if not self._even and not queue.runnable:
            self._lift(queue)

    def _lift(self, idle: _Queue) -> None:
        """Have that thread go to an idle pCPU that runs alone where least is gained by it."""
        alone = [
            queue
            for queue in self._queues
            if len(queue.runnable) == 1
            and queue.runnable[0].affinity >> idle.cpu & 1
            and queue.worth < idle.worth
        ]
        if alone:
            lowest = min(alone, key=lambda queue: (queue.worth, queue.cpu))
            self._go_up(lowest.runnable[0], 1 << idle.cpu)

    def _pull(self, cpu: int) -> None:
        crowded = [self._queues[other] for other in CpuSet(self._crowded)]
        for queue in sorted(crowded, key=lambda queue: (-queue.weight, queue.cpu)):
            for thread in queue.runnable:
                if thread.affinity >> cpu & 1:
                    self._leave(thread)
                    self._enter(thread, cpu)
                    return

    def _rotate(self) -> None:
        """At the end of a slice, let waiting go round."""
        for cpu in CpuSet(self._crowded):
            queue = self._queues[cpu]
            if not self._crowded >> cpu & 1:
                continue
            thread = next(other for other in queue.runnable if other.floats)
            target = self._lightest(thread, without=cpu)
            there = self._queues[target]
            weight = there.for_speed(there.weight + thread.weight)
            if target != cpu and weight <= queue.for_speed(queue.weight):
                self._leave(thread)
                self._enter(thread, target)


def _next_bit(bits: int, start: int) -> int:
    """Return the first of the bits from `start` on upwards, beginning again at the lowest."""
    above = bits >> start
    return start + (above & -above).bit_length() - 1 if above else (bits & -bits).bit_length() - 1
