"""What is claimed with figures, measured on real guests against an independent reading.

The independent reading is the kernel's own: /proc/PID/task/TID/schedstat of the vCPU threads.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lab import Guest, Lab, Schedstat
from service import Service, cpu_s, running

Figure = Callable[[str], None]


def read(guests: Sequence[Guest]) -> list[Schedstat]:
    """Read the counters of vCPU 0 of each guest."""
    return [guest.schedstat(0) for guest in guests]


def share(before: Schedstat, later: Schedstat) -> float:
    """Give the usage between two readings, in pCPUs."""
    return (later.run_ns - before.run_ns) / (later.at_ns - before.at_ns)


def work_per_s(guests: Sequence[Guest], seconds: float) -> float:
    """Give the CPU time that all guests together get in a second."""
    before_s, began_s = sum(guest.cpu_time_s() for guest in guests), time.monotonic()
    time.sleep(seconds)
    return (sum(guest.cpu_time_s() for guest in guests) - before_s) / (time.monotonic() - began_s)


@pytest.mark.parametrize("percents", [(25, 50), (75, 100)])
def test_loads_are_true(lab: Lab, percents: tuple[int, int], figure: Figure) -> None:
    """Usage and the load of each pCPU are within 2 points of schedstat, cycle by cycle.

    Without a half-life, and by usage, the load is what ran; by demand what waited counts, too.
    """
    guests = [
        lab.add_guest(f"p{percent}", [percent / 100], pin=cpu)
        for cpu, percent in enumerate(percents)
    ]
    worst = 0.0
    with running(lab, "3", VCPUSCHED_HALF_LIFE="0", VCPUSCHED_MEASURE="usage") as service:
        service.wait_cycles(2)
        cycle, before = service.cycle, read(guests)
        for _ in range(5):
            service.wait("next cycle", lambda seen=cycle: service.cycle > seen)  # type: ignore[misc]
            later = read(guests)
            state = service.state
            cycle = state["cycle"]
            loads = {vcpu["domain"]: vcpu["load"] for vcpu in state["snapshot"]["vcpus"]}
            for guest, first, last in zip(guests, before, later, strict=True):
                # One vCPU a pCPU: its usage is the pCPU's load.
                difference = abs(loads[guest.name] - share(first, last)) * 100
                worst = max(worst, difference)
                assert difference < 2, (guest.name, loads[guest.name], share(first, last))
            before = later
        assert service.state["pins"] == 0
    figure(f"usage at {percents[0]} and {percents[1]} %: at most {worst:.2f} points off schedstat")


def test_work_done(lab: Lab, figure: Figure) -> None:
    """Four busy guests, all on pCPU 0 of 2: with the daemon they get nearly twice the CPU time."""
    guests = [lab.add_guest(f"g{index}", [1.0], pin=0) for index in range(4)]
    time.sleep(1)
    without = work_per_s(guests, 8)
    with running(lab, "0.5") as service:
        service.wait("balanced", lambda: service.state.get("pins", 0) == 2)
        service.wait_cycles(2)
        with_daemon = work_per_s(guests, 8)
        service.wait_cycles(4)
        assert service.state["pins"] == 2
        ratio = with_daemon / without
        figure(
            f"work of four 100 % guests bound to pCPU 0 of 2: {without:.2f} s/s without the daemon,"
            f" {with_daemon:.2f} with it, ratio {ratio:.2f}"
        )
        assert ratio > 1.7


FLOATING = {
    "two at 25 %": [0.25] * 2,
    "three at 30 %": [0.3] * 3,
    "three at 60 %": [0.6] * 3,
    "five at 100 %": [1.0] * 5,
    "one hog alone": [1.0],
}


@pytest.mark.parametrize("name", FLOATING)
def test_floating_guests(lab: Lab, name: str, figure: Figure) -> None:
    """All guests floating on two pCPUs, 40 periods in each mode.

    "kernel" never pins; "pin" pins each vCPU at most once, and none where that would not end
    balanced and unsaturated; the guests get no less work done than without the daemon.
    """
    shares = FLOATING[name]
    guests = [lab.add_guest(f"g{index}", [share]) for index, share in enumerate(shares)]
    time.sleep(1)
    work = {"none": work_per_s(guests, 10)}
    pins: dict[str, int] = {}
    for mode in ("kernel", "pin"):
        with running(lab, "0.5", VCPUSCHED_FLOATING=mode) as service:
            service.wait_cycles(1)
            work[mode] = work_per_s(guests, 10)
            service.wait("40 periods", lambda service=service: service.cycle > 40)  # type: ignore[misc]
            pins[mode] = service.state["pins"]
            per_guest = [len(service.lines(f"Pinned vCPU 0 of g{i} ")) for i in range(len(guests))]
            assert max(per_guest) <= (1 if mode == "pin" else 0)
            if name != "two at 25 %":
                assert pins[mode] == 0
            # Other load on the machine is noise for all three measurements.
            assert work[mode] > 0.9 * work["none"]
    figure(
        f"floating, {name}: pins {pins['kernel']} (kernel), {pins['pin']} (pin);"
        f" work {work['none']:.2f} s/s without, {work['kernel']:.2f} and {work['pin']:.2f} with"
    )


def memory_mib(service: Service) -> float:
    """Give the resident memory of the service."""
    for line in Path(f"/proc/{service.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_what_it_costs(lab: Lab, figure: Figure) -> None:
    """CPU time per cycle of daemon and libvirtd with 10 guests of 2 vCPUs; memory; start."""
    for index in range(10):
        lab.add_guest(f"g{index}", [0.02, 0.02])
    cycles = 60
    with running(lab, "0.5", VCPUSCHED_FLOATING="kernel") as service:
        ready_s = service.wait_ready()
        service.wait_cycles(4)
        began, ours_s, theirs_s = service.cycle, cpu_s(service.pid), lab.daemon_cpu_s()
        service.wait_cycles(cycles)
        count = service.cycle - began
        ours_ms = (cpu_s(service.pid) - ours_s) * 1000 / count
        theirs_ms = (lab.daemon_cpu_s() - theirs_s) * 1000 / count
        figure(
            f"10 guests of 2 vCPUs, per cycle: {ours_ms:.1f} ms CPU of the daemon, {theirs_ms:.1f}"
            f" of libvirtd; {memory_mib(service):.0f} MiB resident; READY after {ready_s:.2f} s"
        )
        assert count >= cycles
        assert service.process.poll() is None
