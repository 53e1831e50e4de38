"""Runs the real service on real guests for long, while guests, libvirtd and pins change.

Rule: seeded, though time makes each run another. The guests are emulated, on a libvirt of their
own; the service is the real program, heard through its log and its files.

Problem: what a fault leaves behind shows only after many others, and some faults only on a real
    libvirt.
Approach: guests start, end and start anew; an administrator pins, by libvirt and without it, and
    gives pools; libvirtd restarts, is killed, and hangs. After each of that an account of its own
    is compared with what must be true.
Terms: a vCPU's own affinity is what it would be without us: where it started, or what an
    administrator set last. Where the service pinned it in the very period in which an administrator
    did, it is not known which came last: until its guest ends it is left out, and counted.
What must be true: a vCPU that is not on its own affinity has that in the ledger, and the pin in the
    log; what an administrator did is noticed, and held; definitions stay as they were, to the byte;
    memory and open files stay what they were; a stop leaves nothing behind.
"""

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import libvirt
from lab import Guest, Lab, LabError
from lab_processes import end_on_signals
from live.service import Daemon, LiveError, running
from progress import say
from soak.verdict import Size, verdict

from vcpusched.act.ledger_file import parse
from vcpusched.host.libvirt_xml import ORIGIN
from vcpusched.model import CpuSet, DomainUuid
from vcpusched.service.run_directory import LEDGER

GUESTS_MAX: Final = 5
GUESTS_MIN: Final = 2
SETTINGS: Final = {"period": "1", "cooldown": "0", "log_level": '"debug"'}
HANG_S: Final = 12.0
"""Longer than it takes to notice it."""

NOTICE_S: Final = 30.0
"""So long an external change may go unnoticed: libvirtd may hang meanwhile."""

SLACK_FILES: Final = 1
"""A file of the run directory is open for a moment, now and then."""

PINNED: Final = re.compile(
    r"(?:: p|Unp)inned vCPU (\d+) of (\S+) \(~\d+%\), pCPUs? \S+ -> pCPUs? ([0-9,-]+): "
)
BY_HAND: Final = re.compile(r"Someone else (?:pinned|set the affinity of) vCPU (\d+) of (\S+) ")


@dataclass
class Vcpu:
    """What is true of a vCPU, by our own account."""

    own: CpuSet
    is_held: bool = False
    is_unclear: bool = False


@dataclass
class Account:
    """All that must be true, and what was not."""

    lab: Lab
    service: Daemon
    chance: random.Random
    everywhere: CpuSet
    vcpus: dict[str, list[Vcpu]] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)
    names: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    # What happens.

    def step(self) -> None:
        """Have one thing happen, and check what must be true."""
        running = len(self.vcpus)
        actions: list[tuple[str, float, Callable[[], None]]] = [
            ("a guest started", 6 if running < GUESTS_MAX else 0, self._start),
            ("a guest ended", 3 if running > GUESTS_MIN else 0, self._end),
            ("a guest started again under its UUID", 2, self._restart),
            ("a vCPU was pinned as virsh does", 4, lambda: self._pin(by_libvirt=True)),
            ("a vCPU was pinned without libvirt", 2, lambda: self._pin(by_libvirt=False)),
            ("a vCPU was let run anywhere", 2, self._let_run),
            ("a guest was released", 6, lambda: self._release(self._any())),
            ("a guest was restored and released", 2, self._restore),
            ("libvirtd restarted", 0.6, self.lab.restart_daemon),
            ("libvirtd was killed", 0.6, lambda: self.lab.restart_daemon(kill=True)),
            ("libvirtd hung", 0.4, self._hang_libvirtd),
        ]
        what, _, action = actions[0]
        if running >= GUESTS_MIN:
            ((what, _, action),) = self.chance.choices(
                actions, [weight for _, weight, _ in actions]
            )
        self.seen[what] += 1
        action()
        self._wait_cycles(self.chance.choice([1, 2, 2, 4]))
        self.check()

    def _start(self) -> None:
        self.names += 1
        name = f"guest{self.names}"
        count = self.chance.choice([1, 1, 2])
        loads = [self.chance.choice([0.1, 0.2, 0.4]) for _ in range(count)]
        guest = self.lab.add_guest(name, loads)
        self.definitions[name] = _definition(guest)
        self.vcpus[name] = [Vcpu(self.everywhere) for _ in range(count)]
        if self.chance.random() < 0.5:  # noqa: PLR2004  half of them
            for number in range(count):
                self._put(name, number, CpuSet.of([min(self.everywhere)]), by_libvirt=True)
            self._release(name)

    def _end(self) -> None:
        name = self._any()
        self.lab.guests[name].destroy()
        del self.vcpus[name]

    def _restart(self) -> None:
        name = self._any()
        count = len(self.vcpus[name])
        self.vcpus[name] = []  # nothing is known of it meanwhile
        self.lab.guests[name].restart()
        self.vcpus[name] = [Vcpu(self.everywhere) for _ in range(count)]

    def _pin(self, *, by_libvirt: bool) -> None:
        name, number = self._any_vcpu()
        free = self.everywhere - _affinity(self.lab.guests[name], number)
        cpu = CpuSet.of([self.chance.choice(list(free or self.everywhere))])
        self._put(name, number, cpu, by_libvirt=by_libvirt)

    def _let_run(self) -> None:
        name, number = self._any_vcpu()
        if _affinity(self.lab.guests[name], number) != self.everywhere:
            self._put(name, number, self.everywhere, by_libvirt=True)

    def _restore(self) -> None:
        name = self._any()
        self.service.said("restore", name)
        for number, vcpu in enumerate(self.vcpus[name]):
            if _affinity(self.lab.guests[name], number) != vcpu.own and not vcpu.is_unclear:
                self.broken.append(f"{name}: vCPU {number} is not restored")
        self._release(name)

    def _hang_libvirtd(self) -> None:
        self.lab.freeze_daemon()
        time.sleep(self.chance.choice([1.0, HANG_S]))
        self.lab.thaw_daemon()

    # What must be true.

    def check(self) -> None:
        """Compare guests, ledger and log with the account."""
        for name, vcpus in self.vcpus.items():
            for number, vcpu in enumerate(vcpus):
                if not vcpu.is_unclear:
                    self._check(name, number, vcpu)

    def _check(self, name: str, number: int, vcpu: Vcpu) -> None:
        problem = ""
        for _ in range(5):  # a pin may be made or restored between two readings
            now = _affinity(self.lab.guests[name], number)
            if now == vcpu.own:
                return
            original = self._original(name, number)
            announced = self._announced(name, number)
            problem = f"{name}: vCPU {number} is on {now}, its own is {vcpu.own}, "
            if vcpu.is_held:
                problem += "and an administrator's pin is held"
            elif original != vcpu.own:
                problem += f"and the ledger says {original}"
            elif announced != now:
                problem += f"and the last pin in the log is to {announced}"
            else:
                return
            time.sleep(0.3)
        self.broken.append(problem)

    def _original(self, name: str, number: int) -> CpuSet | None:
        kept = parse((self.service.run_directory / LEDGER).read_text()).entries
        entry = kept.get(DomainUuid(self.lab.guests[name].uuid))
        record = entry.records.get(number) if entry is not None else None
        return record.original if record is not None else None

    def _announced(self, name: str, number: int) -> CpuSet | None:
        pins = _of(PINNED, self.service.log, name, number)
        return CpuSet.parse(pins[-1][3]) if pins else None

    def finish(self) -> None:
        """Stop the service, and check what is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.service.terminate()
        if (status := self.service.process.poll()) != 0:
            self.service.process.kill()
            self.broken.append(f"the service ended with status {status}")
        for name, vcpus in self.vcpus.items():
            guest = self.lab.guests[name]
            if ORIGIN in guest.domain().XMLDesc(0):
                self.broken.append(f"{name} still carries a mark")
            for number, vcpu in enumerate(vcpus):
                now = _affinity(guest, number)
                if now != vcpu.own and not vcpu.is_unclear:
                    self.broken.append(
                        f"{name}: vCPU {number} is left on {now}, its own is {vcpu.own}"
                    )
        for name, before in self.definitions.items():
            if _definition(self.lab.guests[name]) != before:
                self.broken.append(f"the definition of {name} is another one")
        said = self.service.said("restore", "--uri", self.lab.uri)
        if said != "No vCPU is pinned by vcpusched.\n":
            self.broken.append(f"restore after the stop says {said!r}")
        if "Traceback" in self.service.log:
            self.broken.append("the service logged a traceback")

    def _put(self, name: str, number: int, cpus: CpuSet, *, by_libvirt: bool) -> None:
        """Set the affinity of a vCPU, and wait until that was noticed."""
        guest, vcpu = self.lab.guests[name], self.vcpus[name][number]
        # Whether the service knew of this run of the guest: what it then finds first is placement.
        was_known = name in self._known() and not vcpu.is_unclear
        before = len(self.service.log)
        if by_libvirt:
            flags = tuple(cpu in cpus for cpu in range(max(cpus) + 1))
            guest.domain().pinVcpuFlags(number, flags, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        else:
            os.sched_setaffinity(guest.vcpu_threads()[number], set(cpus))
        vcpu.own, vcpu.is_held = cpus, False
        self._wait_cycles(2)
        log = self.service.log[before:]
        pinned = _of(PINNED, log, name, number)
        noticed = _of(BY_HAND, log, name, number)
        if noticed and not pinned:
            vcpu.is_held = len(cpus) == 1
        elif pinned:
            vcpu.is_unclear = True
            self.seen["of which in the very period of a pin of ours: left out"] += 1
        elif was_known:
            self.broken.append(f"{name}: it was not noticed that vCPU {number} was put on {cpus}")

    def _release(self, name: str) -> None:
        said = self.service.said("release", name)
        if said not in {f"{name}: released\n", f"{name}: was not held\n"}:
            self.broken.append(f"release of {name} says {said!r}")
        for vcpu in self.vcpus[name]:
            vcpu.is_held = False

    def _known(self) -> set[str]:
        snapshot = self.service.state.get("snapshot") or {"vcpus": []}
        return {vcpu["domain"] for vcpu in snapshot["vcpus"]}

    def _wait_cycles(self, count: int) -> None:
        service, goal = self.service, self.service.cycle + count
        self.service.wait(
            f"{count} more cycles",
            lambda: service.cycle >= goal and service.state["connected"],
            NOTICE_S,
        )

    def _any(self) -> str:
        return self.chance.choice(sorted(self.vcpus))

    def _any_vcpu(self) -> tuple[str, int]:
        name = self._any()
        return name, self.chance.randrange(len(self.vcpus[name]))


def _of(pattern: re.Pattern[str], log: str, name: str, number: int) -> list[re.Match[str]]:
    """Return what is found of one vCPU in a log."""
    return [it for it in pattern.finditer(log) if (it[2], int(it[1])) == (name, number)]


def _affinity(guest: Guest, number: int) -> CpuSet:
    return CpuSet.of(guest.affinity(number))


def _definition(guest: Guest) -> str:
    return str(guest.domain().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def soak(minutes: float, seed: int) -> bool:
    """Run it, say what happened, and return whether all that must be true was."""
    chance = random.Random(seed)  # noqa: S311  chance that can be repeated
    everywhere = CpuSet.of(os.sched_getaffinity(0))
    sizes: list[Size] = []
    with Lab() as lab, running(lab.uri, SETTINGS) as service:
        account = Account(lab, service, chance, everywhere)
        began_s = said_s = time.monotonic()
        due_s = [minutes * 60 * part for part in (0.15, 0.5, 1)]
        while due_s and not account.broken:
            account.step()
            passed_s = time.monotonic() - began_s
            if passed_s >= due_s[0]:
                due_s = [at_s for at_s in due_s if at_s > passed_s]
                sizes.append(Size.of(service.pid, f"{passed_s / 60:.1f} minutes"))
            if time.monotonic() - said_s >= 60:  # noqa: PLR2004  a line a minute
                said_s = time.monotonic()
                say(f"{passed_s / 60:.0f} of {minutes:g} minutes")
        pins = service.state.get("pins", 0)
        cycles = service.cycle
        account.finish()
        say(
            f"{(time.monotonic() - began_s) / 60:.1f} minutes, seed {seed}: {cycles:,} cycles, "
            f"{pins:,} pins, {account.names} guests"
        )
        if account.broken:
            say("What the service said last:")
            say("\n".join(service.log.splitlines()[-30:]))
        # Here, since a service that does not end with status 0 is an error as well.
        return verdict(account.seen, sizes, account.broken, SLACK_FILES)


def main() -> int:
    """Read the command line, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="contrib/benchmark/run soak --live", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    end_on_signals()
    try:
        return 0 if soak(asked.minutes, asked.seed) else 1
    except (AssertionError, LabError, LiveError, TimeoutError) as error:
        say(f"soak: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
