"""Runs the production scheduler and ledger for very long, with everything going wrong now and then.

Rule: seeded and exactly repeatable but for what it measures of the process. The host is in memory;
scheduler, reconciler and ledger file are the real ones, and nothing in them is replaced.

Problem: what a fault leaves behind shows only after many others: a record too many, a pin without
    a record, a file descriptor.
Approach: guests come and go; pins fail before and after they were made, connections break, libvirtd
    restarts with other ids, administrators pin, the kernel resets pins, the disk is full, the
    process is killed between any two steps and started anew. An account of its own is compared
    after every cycle with what must be true.
What must be true: no vCPU is pinned by us outside its definition, nor one that an administrator's
    pin holds; of every pin of ours the original affinity is in the file; after a restore in the end
    every affinity is what it would be without us, and memory and open files are what they were.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from progress import follow, say
from soak.faulty_host import ONLINE, Killed, World
from soak.verdict import Size, verdict

from vcpusched.act.actuator import Event
from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.act.ledger import Changed
from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.hypervisor import ConnectionLostError, HypervisorError
from vcpusched.plan.planner import Policy
from vcpusched.service.run_directory import LEDGER, LedgerFile

STEPS_MAX: Final = 800
"""Plans need not be the best here; there are many of them."""

UNKNOWN_MAX: Final = 300
"""For so many cycles it may be unknown whether a pin was made; a life of the service lasts 20, and
each begins to count anew."""


class SoakedFile(LedgerFile):
    """The real file, on a disk that is full now and then, of a process that may be killed."""

    def __init__(self, directory: Path, world: World) -> None:
        super().__init__(directory)
        self._world = world

    def replace(self, text: str) -> None:
        """Replace the file."""
        self._world.step()
        if self._world.happens("the ledger could not be written", 5):
            raise OSError(28, "No space left on device")
        super().replace(text)
        self._world.step()


class Process:
    """One life of the service; the next begins with nothing but the file."""

    def __init__(self, world: World, directory: Path) -> None:
        self._world = world
        self.book = Book(SoakedFile(directory, world))
        if self.book.problem:
            world.broken.append(self.book.problem)
        self._scheduler = Scheduler()
        self.reconciler = Reconciler(world, self.book)

    def cycle(self, rules: Rules) -> int:
        """Run one cycle, and return the number of pins."""
        events: list[Event] = []
        try:
            cycle = self._scheduler.cycle(self.reconciler, rules, on_event=events.append)
        except ConnectionLostError:
            self.reconnect()
            return 0
        except HypervisorError:
            return 0
        if cycle.lost is not None:
            self.reconnect()
        return sum(isinstance(event, Changed) and event.number > 0 for event in events)

    def reconnect(self) -> None:
        """Begin with another connection."""
        self.reconciler = Reconciler(self._world, self.book)
        self._scheduler = Scheduler()


def check(world: World) -> None:
    """Compare the file with the account: of each pin of ours it must have the original affinity."""
    kept = world.kept()
    for uuid, guest in world.guests.items():
        entry = kept.get(uuid)
        for number, vcpu in enumerate(guest.vcpus):
            record = entry.records.get(number) if entry is not None else None
            original = record.original if record is not None else None
            is_pending = record is not None and record.pending is not None
            vcpu.unknown = vcpu.unknown + 1 if is_pending else 0
            if vcpu.unknown == UNKNOWN_MAX:
                world.broken.append(f"{guest.name}: whether vCPU {number} was pinned stays unknown")
            if vcpu.affinity not in {vcpu.own, ONLINE} and original != vcpu.own:
                world.broken.append(
                    f"{guest.name}: vCPU {number} is on {vcpu.affinity}, was on {vcpu.own}, and "
                    f"the ledger says {original}"
                )


def soak(cycles: int, seed: int, directory: Path) -> bool:
    """Run it, say what happened, and return whether all that must be true was."""
    world = World(seed, directory / LEDGER)
    rules = Rules(policy=Policy(steps_max=STEPS_MAX), cooldown_s=60)
    process, pins, lives = Process(world, directory), 0, 1
    began_s, sizes = time.monotonic(), list[Size]()
    for number in follow(range(1, cycles + 1), cycles, "Cycles"):
        world.meddle()
        world.pass_time()
        try:
            pins += process.cycle(rules)
            is_over = world.happens("the service was started anew", 1)
            if is_over:
                process.book.catch_up()
        except Killed:
            is_over = True
        if is_over:
            world.forget()
            process, lives = Process(world, directory), lives + 1
        if world.happens("libvirtd restarted and gave other ids", 1):
            world.give_new_ids()
            process.reconnect()
        check(world)
        if number in {cycles // 10, cycles // 2, cycles}:
            gc.collect()
            sizes.append(Size.of(os.getpid(), f"{number:,} cycles"))
        if world.broken:
            break
    world.quiet = True
    world.end(process.reconciler)
    say(
        f"{cycles:,} cycles in {time.monotonic() - began_s:.0f} s, seed {seed}: {pins:,} pins, "
        f"{lives:,} lives of the service, {len(world.guests)} guests in the end"
    )
    return verdict(world.seen, sizes, world.broken)


def main() -> int:
    """Read the command line, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="contrib/benchmark/run soak", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cycles", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vcpusched-soak-") as directory:
        return 0 if soak(asked.cycles, asked.seed, Path(directory)) else 1


if __name__ == "__main__":
    sys.exit(main())
