"""Measures a scenario in interleaved blocks: without the daemon and with it, in turn.

Rule: readings only; `verdict` says what they mean.

Block: every guest is put back to where it starts; the daemon is started, or not; both get the same
    time to come to rest; then all guests' work, run and wait are read, at the beginning and at the
    end.
Pair: two blocks that follow each other, one of each kind, so that what else the machine runs hits
    both alike; which is first changes from pair to pair.
Work: the guests' own count (`Guest.work`), in rounds of their loop. Run and wait: the kernel's
    account of the vCPU threads; no wait is what a quota kept from running.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from lab import Guest, Lab
from lab_guest import NS_PER_S, WORK_COUNTS
from live.scenarios import TURN_S, Scenario
from live.service import LiveError, running
from live.system import SystemHost
from service import wait_for

from vcpusched.host.cpus import busy
from vcpusched.model import CpuSet

BOOT_S: Final = 2.0

Host = Lab | SystemHost


@dataclass(frozen=True, slots=True)
class Timing:
    """How many pairs of blocks, from 1 on, and how long each block rests and is measured."""

    pairs: int
    rest_s: float
    measure_s: float


@dataclass(frozen=True, slots=True)
class Got:
    """What a guest got: rounds of its loop a second; run and wait of all its vCPUs, in pCPUs.

    `cpus` is its real affinity at the end, of each vCPU.
    """

    work_per_s: float
    run: float
    wait: float
    cpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """One block; `pins` counts what the daemon did in all.

    `beside` is what else took the scenario's pCPUs, in pCPUs: other processes, the daemon, libvirt,
    what QEMU does beside its vCPUs, and what a hypervisor below took away. Pins and `pins_failing`
    are 0 without the daemon.
    """

    pair: int
    daemon: bool
    guests: Mapping[str, Got]
    beside: float = 0.0
    pins: int = 0
    pins_failing: int = 0


@dataclass(frozen=True, slots=True)
class _Reading:
    work: tuple[int, ...]
    run_ns: int
    wait_ns: int
    at_ns: int


def furnish(host: Host, scenario: Scenario, online: CpuSet) -> None:
    """Start the scenario's guests in an open host, and wait until each vCPU works.

    `online` are the machine's pCPUs. Raises LabError and TimeoutError.
    """
    cpuset = None if scenario.cpus == online else str(scenario.cpus)
    for shape in scenario.guests:
        host.add_guest(shape.name, shape.shares, cpuset=cpuset)
    time.sleep(BOOT_S)
    for guest in host.guests.values():
        for vcpu in range(guest.plan.vcpus):
            first = guest.work(vcpu)
            wait_for(f"work of {guest.name}", lambda: guest.work(vcpu) != first)  # noqa: B023  now


def measure(host: Host, scenario: Scenario, timing: Timing) -> Iterator[Block]:
    """Measure the scenario's guests, block by block; in the end all are where they start.

    Raises LabError and LiveError.
    """
    try:
        for pair in range(timing.pairs):
            for daemon in (False, True) if pair % 2 == 0 else (True, False):
                restore(host, scenario)
                yield _block(host, scenario, timing, pair, daemon=daemon)
    finally:
        restore(host, scenario)


def restore(host: Host, scenario: Scenario) -> None:
    """Put every guest back to where it starts."""
    for shape in scenario.guests:
        host.guests[shape.name].confine(list(shape.start))


def _block(host: Host, scenario: Scenario, timing: Timing, pair: int, *, daemon: bool) -> Block:
    with ExitStack() as stack:
        service = stack.enter_context(running(host.uri, scenario.settings)) if daemon else None
        if service is not None:
            service.wait_past(0)
        _pass(host, scenario, timing.rest_s)
        busy_s, began_s = _busy_s(scenario.cpus), time.monotonic()
        before = {shape.name: _read(host.guests[shape.name]) for shape in scenario.guests}
        _pass(host, scenario, timing.measure_s)
        after = {shape.name: _read(host.guests[shape.name]) for shape in scenario.guests}
        used = (_busy_s(scenario.cpus) - busy_s) / (time.monotonic() - began_s)
        state = service.state if service is not None else {}
        guests = {
            name: _got(host.guests[name], reading, after[name]) for name, reading in before.items()
        }
        for name, got in guests.items():
            if min(got.run, got.work_per_s) <= 0:
                raise LiveError(f"guest {name} did nothing for {timing.measure_s:g} s: {got}")
        beside = max(0.0, used - sum(got.run for got in guests.values()))
        if service is None:
            return Block(pair, daemon, guests, beside)
        # One a second; on a crowded machine now and then one is late.
        if int(state["cycle"]) < (timing.rest_s + timing.measure_s) / 2:
            raise LiveError(f"vcpusched all but stood still: {service.log}")
        return Block(
            pair=pair,
            daemon=daemon,
            guests=guests,
            beside=beside,
            pins=int(state["pins"]),
            pins_failing=len(state["pins_failing"]),
        )


def _pass(host: Host, scenario: Scenario, seconds: float) -> None:
    """Let time pass, and guests take turns where the scenario says so."""
    end_s, number = time.monotonic() + seconds, 0
    while (left_s := end_s - time.monotonic()) > 0:
        for name, share in scenario.turn(number).items() if scenario.in_turns else ():
            host.guests[name].hold(share)
        time.sleep(min(left_s, TURN_S))
        number += 1


def _busy_s(cpus: CpuSet) -> float:
    """Return how long these pCPUs together have not been idle since the machine started."""
    found = busy()
    if found is None:
        raise LiveError("/proc/stat cannot be read")
    return sum(found.by_cpu_ns[cpu] for cpu in cpus) / NS_PER_S


def _read(guest: Guest) -> _Reading:
    work = tuple(guest.work(vcpu) for vcpu in range(guest.plan.vcpus))
    return _Reading(work, *account(guest))


def account(guest: Guest) -> tuple[int, int, int]:
    """Return how long all vCPUs have run and waited, without quotas, and when that was, in ns."""
    vcpus = range(guest.plan.vcpus)
    found = [guest.schedstat(vcpu) for vcpu in vcpus]
    wait_ns = sum(one.wait_ns for one in found) - sum(map(guest.throttled_ns, vcpus))
    return sum(one.run_ns for one in found), wait_ns, found[0].at_ns


def _got(guest: Guest, before: _Reading, after: _Reading) -> Got:
    passed_ns = after.at_ns - before.at_ns
    rounds = sum(
        (now - then) % WORK_COUNTS for then, now in zip(before.work, after.work, strict=True)
    )
    return Got(
        work_per_s=rounds * NS_PER_S / passed_ns,
        run=(after.run_ns - before.run_ns) / passed_ns,
        wait=max(0, after.wait_ns - before.wait_ns) / passed_ns,
        cpus=tuple(str(CpuSet.of(guest.affinity(vcpu))) for vcpu in range(guest.plan.vcpus)),
    )
