"""What is remembered so that it can be undone, and whose pin is whose."""

import contextlib
import dataclasses
import itertools
import json
import os
import stat
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from builders import MemoryHost
from watched import NAMES, Watched, balanced, keeper, reading, run, vcpu, why

from vcpusched.act.comparison import UNCLEAR, UNSEEN_NS_MAX, YOUNG_NS
from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.act.ledger import Changed
from vcpusched.act.ledger_file import Book, parse
from vcpusched.act.reconciler import ASKED_MAX, SAVE_NS, Reconciler
from vcpusched.act.table import QUARANTINE_CYCLES
from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    HypervisorError,
    NotRecordedError,
    OvertakenError,
    VanishedError,
)
from vcpusched.model import ALL_CPUS, CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Definition, DomainReading, Origin
from vcpusched.service.control import Request, Verb
from vcpusched.service.restore import carry_out
from vcpusched.service.run_directory import LedgerFile
from vcpusched.service.worker import Cycled, Worker


class Killed(BaseException):
    """The process is killed here."""


class Steps:
    """Counts the steps that the outside world sees, and is killed at one of them."""

    def __init__(self, last: int = 1_000_000) -> None:
        self.count = 0
        self._last = last

    def step(self) -> None:
        """Take one step, or be killed."""
        if self.count == self._last:
            raise Killed
        self.count += 1


class SteppingFile(LedgerFile):
    """A ledger file with a step before and after each write."""

    def __init__(self, directory: Path, steps: Steps) -> None:
        super().__init__(directory)
        self._steps = steps

    def replace(self, text: str) -> None:
        """Replace the file."""
        self._steps.step()
        super().replace(text)
        self._steps.step()


class SteppingHost(MemoryHost):
    """A host with a step before and after each pin and each mark."""

    steps = Steps()

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Mark a guest."""
        self.steps.step()
        super().mark(uuid, domain_id, origin)
        self.steps.step()

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Pin a guest."""
        self.steps.step()
        super().pin(vcpu, cpus)
        self.steps.step()


def crowded(pool: str = "0-1") -> MemoryHost:
    """Give a host of two pCPUs: three guests bound to pCPU 0, one that may use both."""
    cpus = dict.fromkeys(NAMES, "0") | {"g3": pool}
    return MemoryHost(2, dict.fromkeys(NAMES, 0.25), cpus)


def test_original_affinities_are_restored(tmp_path: Path) -> None:
    """After two pins, by the same process or the next one, and only once."""
    for starts_anew in (False, True):
        host, kept, _scheduler, _name, _changes = balanced(tmp_path)
        kept = keeper(host, tmp_path) if starts_anew else kept
        given = kept.restore()
        assert [(str(one.move.from_cpus), str(one.move.to_cpus), why(one)) for one in given] == [
            ("1", "0", "")
        ] * 2
        assert {str(cpus) for cpus in host.cpus.values()} == {"0"}
        assert kept.restore() == []
        assert keeper(host, tmp_path).restore() == []
        assert len(host.pins) == 4
        assert "original" not in (tmp_path / "affinity.json").read_text()


def plan_and_restore(host: SteppingHost, directory: Path, steps: Steps) -> None:
    """Balance a host, then restore everything; may be killed at any step."""
    host.steps = steps
    kept = Watched(host, Book(SteppingFile(directory, steps)), [])
    run(kept, host, Scheduler(), 6)
    kept.restore()


@pytest.mark.parametrize("second", [None, 1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("ledger", ["kept", "lost"])
def test_killed_at_any_step(tmp_path: Path, second: int | None, ledger: str) -> None:
    """Before and after each write and each pin, and a second time while that is undone.

    The next to start restores everything, though the plan, too, moves a guest that was moved:
    by the ledger, or on another host by the marks alone.
    """
    killed = 0
    for last in itertools.count():
        directory = tmp_path / str(last)
        directory.mkdir()
        cpus = dict.fromkeys(NAMES, "0") | {"g3": "0-1"}
        host = SteppingHost(2, dict.fromkeys(NAMES, 0.25), cpus)
        before = dict(host.cpus)
        try:
            plan_and_restore(host, directory, Steps(last))
        except Killed:
            killed += 1
        else:
            break
        if second is not None:
            steps = Steps(second)
            host.steps = steps
            with contextlib.suppress(Killed):
                Watched(host, Book(SteppingFile(directory, steps)), []).restore()
        host.steps = Steps()
        (directory / f".affinity.json.{last}").write_text("half a fi")  # what a kill leaves
        if ledger == "lost":
            (directory / "affinity.json").unlink(missing_ok=True)
        changes: list[Changed] = []
        later = keeper(host, directory, changes)
        later.restore()
        assert host.cpus == before, last
        assert changes == [], last
        assert keeper(host, directory).restore() == []
        assert not any(definition.origin for definition in host.definitions.values())
    assert killed >= 16


def test_a_pin_of_a_run_before_is_ours(tmp_path: Path) -> None:
    """A crash, and the next run takes up where it was: nothing is held, nothing is reported."""
    host, _kept, _scheduler, name, _changes = balanced(tmp_path)
    changes: list[Changed] = []
    again = keeper(host, tmp_path, changes)
    found = reading(again, host, name)
    assert (found.ours, found.held) == (True, "")
    host.wants[name] = 0.9
    run(again, host, Scheduler(), 6)
    assert changes == []
    again.restore()
    assert {str(cpus) for cpus in host.cpus.values()} == {"0"}


def test_no_pin_without_a_ledger(tmp_path: Path) -> None:
    """A directory that takes no file: no pin is made, no guest is put aside, and then it mends."""
    host = MemoryHost(2, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    directory = tmp_path / "full"
    kept, scheduler = keeper(host, directory), Scheduler()
    for _ in range(3):
        cycle = run(kept, host, scheduler, 3 if host.now_ns < 3e9 else 2)
        assert [failure.kind for failure in cycle.failures] == [NotRecordedError]
        assert "written down" in cycle.failures[0].why
    assert host.pins == []
    directory.mkdir()
    run(kept, host, scheduler, 2)
    assert len(host.pins) == 2


def test_a_pin_of_someone_else_is_held(tmp_path: Path) -> None:
    """A guest that we pinned is pinned elsewhere: held, reported once, left so, across our runs."""
    host, kept, scheduler, name, changes = balanced(tmp_path)
    host.pin(vcpu(host, name), CpuSet.of([0]))
    assert "pinned to pCPU 0 by someone else" in reading(kept, host, name).held
    assert [(one.move.cause, one.move.domain) for one in changes] == [(Cause.PINNED, name)]
    host.wants[name] = 0.9
    run(kept, host, scheduler, 20)
    assert str(host.cpus[name]) == "0"
    assert len(changes) == 1
    again: list[Changed] = []
    later = keeper(host, tmp_path, again)
    assert reading(later, host, name).held
    assert again == []
    later.restore()
    assert str(host.cpus[name]) == "0"
    assert later.release([DomainUuid(name)]) == [name]
    assert later.release() == []
    assert not reading(keeper(host, tmp_path), host, name).held


def test_a_hold_ends_with_the_guest(tmp_path: Path) -> None:
    """The guest is started anew: the new run is nobody's, while we run or while we do not."""
    for stays in (True, False):
        host, kept, _scheduler, name, _changes = balanced(tmp_path)
        host.pin(vcpu(host, name), CpuSet.of([0]))
        assert reading(kept, host, name).held
        host.restart(name)
        host.run_ns[name] = -300_000_000
        kept = kept if stays else keeper(host, tmp_path)
        found = reading(kept, host, name)
        assert (found.ours, found.held) == (False, "")


def test_a_pin_of_someone_else_on_a_guest_that_we_never_pinned(tmp_path: Path) -> None:
    """While we run it is held; what was there when we started is placement."""
    host = crowded()
    changes: list[Changed] = []
    kept = keeper(host, tmp_path, changes)
    assert not reading(kept, host, "g3").held
    grow_up(kept, host)
    host.pin(vcpu(host, "g3"), CpuSet.of([1]))
    assert reading(kept, host, "g3").held
    assert not changes[0].was_ours
    other = crowded("1")
    assert not reading(keeper(other, tmp_path / "other"), other, "g3").held


def test_what_the_definition_says_is_no_hold(tmp_path: Path) -> None:
    """A guest that starts is seen before libvirt has pinned it as its definition has it."""
    host = crowded()
    definition = host.definitions["g3"]
    host.definitions["g3"] = dataclasses.replace(definition, allowed={0: CpuSet.of([1])})
    changes: list[Changed] = []
    kept = keeper(host, tmp_path, changes)
    reading(kept, host, "g3")
    grow_up(kept, host)
    host.pin(vcpu(host, "g3"), CpuSet.of([1]))
    assert not reading(kept, host, "g3").held
    assert [one.move.cause for one in changes] == [Cause.POOLED]


def test_a_pool_of_someone_else_is_respected(tmp_path: Path) -> None:
    """Several pCPUs instead of our pin: reported, no longer ours, and restore leaves it."""
    host = MemoryHost(4, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    changes: list[Changed] = []
    kept, scheduler = keeper(host, tmp_path, changes), Scheduler()
    run(kept, host, scheduler, 4)
    name = host.pins[0][0]
    host.pin(vcpu(host, name), CpuSet.of([2, 3]))
    found = reading(kept, host, name)
    assert (found.ours, found.held) == (False, "")
    assert [(one.move.cause, one.was_ours) for one in changes] == [(Cause.POOLED, True)]
    run(kept, host, scheduler, 20)
    assert str(host.cpus[name]) == "2-3"
    kept.restore()
    assert str(host.cpus[name]) == "2-3"


def test_what_the_kernel_reset_is_pinned_again_three_times(tmp_path: Path) -> None:
    """Libvirt's books still have our pin, the thread may run anywhere: no external change."""
    host, kept, _scheduler, name, changes = balanced(tmp_path)
    pins = len(host.pins)
    for number in range(1, 4):
        host.cpus[name] = CpuSet.of([0, 1])
        assert not reading(kept, host, name).held
        assert len(host.pins) == pins + number
        assert str(host.cpus[name]) == "1"
        assert not reading(kept, host, name).held
    host.cpus[name] = CpuSet.of([0, 1])
    assert "reset by the kernel again and again" in reading(kept, host, name).held
    assert [one.move.cause for one in changes] == [Cause.RESET] * 3 + [Cause.LEFT]
    reading(kept, host, name)
    assert len(host.pins) == pins + 3
    assert len(changes) == 4
    kept.restore()
    assert str(host.cpus[name]) == "0"


def test_a_release_ends_that_too(tmp_path: Path) -> None:
    """What was left after three times is pinned again, three times more, once it is released."""
    host, kept, _scheduler, name, changes = balanced(tmp_path)
    for _ in range(4):
        host.cpus[name] = CpuSet.of([0, 1])
        reading(kept, host, name)
    assert reading(kept, host, name).held
    assert kept.release([DomainUuid(name)]) == [name]
    for _ in range(3):
        host.cpus[name] = CpuSet.of([0, 1])
        assert not reading(kept, host, name).held
        assert str(host.cpus[name]) == "1"
    assert [one.move.cause for one in changes] == [Cause.RESET] * 3 + [Cause.LEFT] + [
        Cause.RESET
    ] * 3


def test_a_pin_that_is_refused_again_is_no_reset(tmp_path: Path) -> None:
    """Reset by the kernel while the guest is busy: not reported as done or counted, later made."""
    busy: list[str] = []
    tried: list[str] = []

    def on_pin(name: str) -> None:
        tried.append(name)
        if name in busy:
            raise BusyError("the domain is busy")

    host = MemoryHost(2, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"), on_pin)
    changes: list[Changed] = []
    kept = keeper(host, tmp_path, changes)
    run(kept, host, Scheduler(), 4)
    name = host.pins[0][0]
    busy.append(name)
    tried.clear()
    host.cpus[name] = CpuSet.of([0, 1])
    for _ in range(10):
        assert not reading(kept, host, name).held
    assert changes == []
    assert tried == [name]  # and then it is left alone for a while
    busy.clear()
    for _ in range(QUARANTINE_CYCLES):
        reading(kept, host, name)
    assert str(host.cpus[name]) == "1"
    assert [one.move.cause for one in changes] == [Cause.RESET]


def test_a_pin_between_the_sample_and_ours(tmp_path: Path) -> None:
    """Someone else is faster: neither a plan nor a restore pins over it, and it is held."""
    host, kept, changes = lone(tmp_path)
    host.pin(vcpu(host, "g"), CpuSet.of([2]))
    with pytest.raises(OvertakenError, match="someone else"):
        kept.put(vcpu(host, "g"), CpuSet.of([1]))
    assert str(host.cpus["g"]) == "2"
    assert "pinned to pCPU 2 by someone else" in reading(kept, host, "g").held
    assert [one.move.cause for one in changes] == [Cause.PINNED]


def test_a_pin_while_its_pcpu_is_offline(tmp_path: Path) -> None:
    """The kernel lets a vCPU run elsewhere, which the ledger does not take over; that is a reset.

    It can be pinned, and what we pinned be restored.
    """
    host, kept, changes = lone(tmp_path, "3")
    host.online, host.cpus["g"] = CpuSet.of([0, 1, 2]), CpuSet.of([0, 1, 2])
    reading(kept, host, "g")
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    assert str(host.cpus["g"]) == "1"

    other = MemoryHost(2, {"g": 0.5}, {"g": "0-1"})
    kept = keeper(other, tmp_path / "other")
    (tmp_path / "other").mkdir()
    reading(kept, other, "g")
    kept.put(vcpu(other, "g"), CpuSet.of([1]))
    reading(kept, other, "g")
    other.online, other.cpus["g"] = CpuSet.of([0]), CpuSet.of([0])
    reading(kept, other, "g")
    assert [why(one) for one in kept.restore()] == [""]
    assert changes == []


def test_a_pin_between_the_sample_and_another_reset(tmp_path: Path) -> None:
    """Two pins were reset; while the first is made again a person pins the second: it is held."""
    host, kept, _scheduler, _name, changes = balanced(tmp_path)
    first, second = sorted(name for name, _cpus in host.pins)
    for name in (first, second):
        host.cpus[name] = CpuSet.of([0, 1])
    host.on_read = lambda name: (
        host.cpus.update({second: CpuSet.of([0])}) if name == first else None
    )
    kept.look()
    assert [one.move.cause for one in changes] == [Cause.RESET]
    host.definitions[second] = dataclasses.replace(
        host.definitions[second], booked={0: CpuSet.of([0])}
    )
    assert "pinned to pCPU 0 by someone else" in reading(kept, host, second).held


def test_resets_that_were_not_tried_do_not_count(tmp_path: Path) -> None:
    """The connection breaks at the first of two again and again: the second is not given up."""
    host, kept, _scheduler, _name, changes = balanced(tmp_path)
    first, second = sorted(name for name, _cpus in host.pins)

    def lose(name: str) -> None:
        if name == first:
            raise ConnectionLostError("gone")

    for _ in range(5):
        host.cpus |= dict.fromkeys((first, second), CpuSet.of([0, 1]))
        host.on_read = lose
        host.pass_time()
        with pytest.raises(ConnectionLostError):
            kept.look()
    host.on_read = lambda _name: None
    assert not reading(kept, host, second).held
    assert [one.move.cause for one in changes] == [Cause.RESET] * 2
    assert {str(host.cpus[name]) for name in (first, second)} == {"1"}


def test_a_restore_after_a_pin_of_someone_else(tmp_path: Path) -> None:
    """What it pinned since the last sample stays; what the kernel reset was nobody's choice."""
    host = MemoryHost(4, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    kept = keeper(host, tmp_path)
    run(kept, host, Scheduler(), 4)
    hand, kernel, *_others = [name for name, _cpus in host.pins]
    free = next(cpu for cpu in (1, 2, 3) if host.cpus[hand] != CpuSet.of([cpu]))
    host.cpus[hand], host.cpus[kernel] = CpuSet.of([free]), CpuSet.parse("0-3")
    given = {one.move.domain: why(one) for one in kept.restore()}
    assert given.pop(hand) == f"someone else has just pinned it to pCPU {free}"
    assert set(given.values()) == {""}
    assert host.cpus.pop(hand) == CpuSet.of([free])
    assert set(map(str, host.cpus.values())) == {"0"}


class MuteHost(MemoryHost):
    """A host of which the definitions of some guests cannot be read."""

    mute: Collection[str] = ()
    error: HypervisorError = HypervisorError("timeout")

    def definition(self, uuid: DomainUuid) -> Definition:
        """Give a guest's definition, or not."""
        if uuid in self.mute:
            raise self.error
        return super().definition(uuid)


def test_guests_that_cannot_be_asked_about_do_not_keep_others_from_it(tmp_path: Path) -> None:
    """As many as are asked in a cycle, and one more, whom a person has just pinned: it is held.

    A connection that is lost meanwhile is no answer.
    """
    names = [f"g{number:02}" for number in range(ASKED_MAX + 1)]
    host = MuteHost(2, dict.fromkeys(names, 0.01), dict.fromkeys(names, "0-1"))
    kept = keeper(host, tmp_path)
    for _ in range(2):
        kept.look()
        host.pass_time(YOUNG_NS / 1e9)
    host.cpus, host.mute = dict.fromkeys(names, CpuSet.of([1])), names[:-1]
    assert "by someone else" in reading(kept, host, names[-1]).held
    host.error = ConnectionLostError("gone")
    with pytest.raises(ConnectionLostError, match="gone"):
        kept.sample()


def test_the_file_knows_how_long_guests_had_run_a_minute_ago(tmp_path: Path) -> None:
    """So that one that is started anew while no service runs is known for that."""
    host, kept, _scheduler, name, _changes = balanced(tmp_path)

    def run_ns() -> int:
        entries = Book(LedgerFile(tmp_path)).ledger.entries
        return entries[DomainUuid(name)].runs_ns[0]

    kept.look()
    began_ns = run_ns()
    for _ in range(100):
        reading(kept, host, name)
        assert host.run_ns[name] - run_ns() <= host.wants[name] * (SAVE_NS + 2_000_000_000)
    assert run_ns() > began_ns


def test_a_restore_leaves_what_nobody_knows_who_pinned(tmp_path: Path) -> None:
    """Another's single pCPU was sampled, and the definition could not be read since."""
    host = MuteHost(4, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    kept = keeper(host, tmp_path)
    run(kept, host, Scheduler(), 4)
    hand, _cpus = host.pins[0]
    free = next(cpu for cpu in (1, 2, 3) if host.cpus[hand] != CpuSet.of([cpu]))
    host.cpus[hand], host.mute = CpuSet.of([free]), NAMES
    assert reading(kept, host, hand).held == UNCLEAR
    given = {one.move.domain: why(one) for one in kept.restore()}
    assert given[hand] == f"someone else has just pinned it to pCPU {free}"
    assert host.cpus[hand] == CpuSet.of([free])


def test_who_rests_makes_no_pin_again(tmp_path: Path) -> None:
    """In a dry run, say: it is not counted either, and made again once the rest is over."""
    host, kept, _scheduler, name, changes = balanced(tmp_path)
    host.cpus[name] = CpuSet.of([0, 1])
    kept.rests = True
    for _ in range(5):
        assert not reading(kept, host, name).held
    assert str(host.cpus[name]) == "0-1"
    kept.rests = False
    reading(kept, host, name)
    assert str(host.cpus[name]) == "1"
    assert [one.move.cause for one in changes] == [Cause.RESET]


def test_pcpus_that_go_and_come_are_no_external_change(tmp_path: Path) -> None:
    """The kernel shows a mask without its offline pCPUs, and shows them again; nobody is held."""
    host = MemoryHost(3, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0-1") | {"g3": "2"})
    changes: list[Changed] = []
    kept = keeper(host, tmp_path, changes)
    reading(kept, host, "g0")
    host.online = CpuSet.of([0])
    host.cpus = dict.fromkeys(NAMES, CpuSet.of([0]))
    assert not reading(kept, host, "g0").held
    assert not reading(kept, host, "g3").held
    host.online = CpuSet.of([0, 1, 2])
    host.cpus = dict.fromkeys(NAMES, CpuSet.of([0, 1])) | {"g3": CpuSet.of([2])}
    assert not reading(kept, host, "g0").held
    assert not reading(kept, host, "g3").held
    assert changes == []


def lone(directory: Path, cpus: str = "0") -> tuple[MemoryHost, Watched, list[Changed]]:
    """Give a host of four pCPUs with one guest, which has been looked at once."""
    host = MemoryHost(4, {"g": 0.5}, {"g": cpus})
    changes: list[Changed] = []
    kept = keeper(host, directory, changes)
    reading(kept, host, "g")
    grow_up(kept, host)
    return host, kept, changes


def grow_up(kept: Watched, host: MemoryHost) -> None:
    """Let the first seconds of all guests pass, in which libvirt may put them where they belong."""
    host.pass_time(YOUNG_NS / 1e9)
    kept.look()


def test_a_persons_pin_to_where_it_was_before_our_last_one(tmp_path: Path) -> None:
    """The service is killed after it saw its last pin in force: the file has that, and no doubt."""
    host, kept, _changes = lone(tmp_path)
    for cpu in (1, 2):
        kept.put(vcpu(host, "g"), CpuSet.of([cpu]))
        reading(kept, host, "g")
    host.pin(vcpu(host, "g"), CpuSet.of([1]))
    found = reading(keeper(host, tmp_path), host, "g")
    assert (found.ours, found.original) == (False, None)
    assert "pinned to pCPU 1 by someone else" in found.held


def test_what_is_noticed_is_written_before_anything_is_done(tmp_path: Path) -> None:
    """Killed as the mark is about to be taken away: someone else's pool is nobody's pin of ours."""
    host, kept, _changes = lone(tmp_path)
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    reading(kept, host, "g")
    host.pin(vcpu(host, "g"), CpuSet.of([2, 3]))

    def killed(_name: str) -> None:
        raise Killed

    host.on_mark = killed
    with pytest.raises(Killed):
        reading(kept, host, "g")
    host.on_mark = lambda _name: None
    later = keeper(host, tmp_path)
    assert not reading(later, host, "g").ours
    assert later.restore() == []
    assert str(host.cpus["g"]) == "2-3"


def test_a_guest_that_cannot_be_read_after_libvirtd_gave_ids_anew(tmp_path: Path) -> None:
    """It is found a sample later, with another id: the same run, so pin and hold are as before."""
    for by_hand in (False, True):
        host, kept, _changes = lone(tmp_path)
        host.add("other", 0.1, "3")
        kept.put(vcpu(host, "g"), CpuSet.of([1]))
        reading(kept, host, "g")
        if by_hand:
            host.pin(vcpu(host, "g"), CpuSet.of([2]))
            assert reading(kept, host, "g").held
        host.domain_ids = {guest: number + 40 for guest, number in host.domain_ids.items()}
        host.unread.add("g")
        later = keeper(host, tmp_path)
        reading(later, host, "other")
        host.unread.clear()
        found = reading(later, host, "g")
        assert (found.ours, bool(found.held)) == (not by_hand, by_hand)


def test_a_pin_that_was_certainly_not_made_makes_nobodys_pin_ours(tmp_path: Path) -> None:
    """A person pins the guest to the same pCPU after ours was refused because of a job."""

    def refuse(_name: str) -> None:
        raise BusyError("being migrated")

    host = MemoryHost(4, {"g": 0.5}, {"g": "0-3"}, refuse)
    kept = keeper(host, tmp_path)
    reading(kept, host, "g")
    grow_up(kept, host)
    with pytest.raises(BusyError):
        kept.put(vcpu(host, "g"), CpuSet.of([1]))
    host.cpus["g"] = CpuSet.of([1])
    assert "by someone else" in reading(kept, host, "g").held


def test_a_way_back_to_pcpus_that_are_offline_is_refused_in_words(tmp_path: Path) -> None:
    """It names them, and the pin is still ours."""
    host, kept, _changes = lone(tmp_path)
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    reading(kept, host, "g")
    host.online = CpuSet.of([1, 2, 3])
    reading(kept, host, "g")
    assert [why(one) for one in kept.restore()] == ["pCPUs 0 are offline or outside its cpuset"]
    assert reading(kept, host, "g").ours


def test_guests_that_a_new_connection_never_finds_are_forgotten(tmp_path: Path) -> None:
    """They ended meanwhile; but libvirtd gets its time to find them."""
    host, kept, _changes = lone(tmp_path)
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    host.add("other", 0.1, "3")
    del host.wants["g"]
    later = keeper(host, tmp_path)
    for seconds, is_there in ((1, True), (50, True), (20, True), (1, False)):
        host.pass_time(seconds)
        later.look()
        assert ('"uuid":"g"' in (tmp_path / "affinity.json").read_text()) == is_there


def test_a_pin_that_was_not_made_is_not_made_again(tmp_path: Path) -> None:
    """A pin fails; then the kernel resets someone else's pin that was there before."""
    host, kept, changes = lone(tmp_path)
    host.definitions["g"] = dataclasses.replace(host.definitions["g"], booked={0: CpuSet.of([0])})
    failing = MemoryHost(4, {"g": 0.5}, {"g": "0"}, refuse)
    failing.definitions = host.definitions
    kept = keeper(failing, tmp_path, changes)
    reading(kept, failing, "g")
    with pytest.raises(HypervisorError):
        kept.put(vcpu(failing, "g"), CpuSet.of([1]))
    assert reading(kept, failing, "g").ours  # it may be
    failing.cpus["g"] = CpuSet.parse("0-3")
    assert not reading(kept, failing, "g").ours
    assert [one.move.cause for one in changes] == [Cause.POOLED]
    assert failing.pins == []


def refuse(_name: str) -> None:
    """Fail as libvirt does, whether or not it did what was asked."""
    raise HypervisorError("no")


def test_a_pin_of_someone_else_while_the_pcpu_of_ours_is_offline(tmp_path: Path) -> None:
    """To run anywhere is a reset by the kernel; to be on one pCPU is someone's pin, and held."""
    host, kept, changes = lone(tmp_path)
    kept.put(vcpu(host, "g"), CpuSet.of([3]))
    reading(kept, host, "g")
    host.online = host.cpus["g"] = CpuSet.parse("0-2")
    assert (reading(kept, host, "g").ours, changes) == (True, [])
    host.pin(vcpu(host, "g"), CpuSet.of([1]))
    assert "pinned to pCPU 1 by someone else" in reading(kept, host, "g").held
    assert [one.move.cause for one in changes] == [Cause.PINNED]
    assert kept.restore() == []


def test_the_last_pcpu_online_is_no_external_change(tmp_path: Path) -> None:
    """All others go offline, that of our pin, too: it can be nowhere else."""
    host, kept, changes = lone(tmp_path)
    kept.put(vcpu(host, "g"), CpuSet.of([3]))
    reading(kept, host, "g")
    host.online = host.cpus["g"] = CpuSet.of([2])
    assert (reading(kept, host, "g").held, changes) == ("", [])


def test_a_held_pin_whose_pcpu_goes_and_comes_back(tmp_path: Path) -> None:
    """The kernel leaves the vCPU wide, libvirt's books have the hand's pin: it stays held.

    Until that hand changes its mind.
    """
    host, kept, changes = lone(tmp_path)
    host.pin(vcpu(host, "g"), CpuSet.of([3]))
    assert reading(kept, host, "g").held
    host.online = host.cpus["g"] = CpuSet.parse("0-2")
    assert reading(kept, host, "g").held
    host.online = host.cpus["g"] = CpuSet.parse("0-3")
    for asked in (kept, keeper(host, tmp_path, changes)):
        assert "pinned to pCPU 3 by someone else" in reading(asked, host, "g").held
    assert [one.move.cause for one in changes] == [Cause.PINNED]
    assert str(host.cpus["g"]) == "0-3"
    host.pin(vcpu(host, "g"), CpuSet.of([1, 2]))
    assert not reading(kept, host, "g").held
    assert [one.move.cause for one in changes] == [Cause.PINNED, Cause.POOLED]


def test_a_mark_that_cannot_be_taken_away_is_remembered(tmp_path: Path) -> None:
    """Reported as a problem, tried again, and no person's pin is taken for ours meanwhile."""
    host, kept, _changes = lone(tmp_path)
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    reading(kept, host, "g")

    def busy(_name: str) -> None:
        raise BusyError("the domain is busy")

    host.on_mark = busy
    asked = Request(Verb.RESTORE)
    answer = carry_out(kept, asked, beside_service=False)
    assert (answer.status, str(host.cpus["g"])) == (1, "0")
    assert answer.problems == ("g: our mark in its metadata could not be removed; try again",)
    host.pin(vcpu(host, "g"), CpuSet.of([2]))
    later = keeper(host, tmp_path)
    found = reading(later, host, "g")
    assert (found.ours, bool(found.held)) == (False, True)
    assert carry_out(later, asked, beside_service=False).status == 1
    host.on_mark = lambda _name: None
    assert carry_out(later, asked, beside_service=False).status == 0
    assert not host.definitions["g"].origin
    assert "marked" not in (tmp_path / "affinity.json").read_text()


class LosesAnswers(MemoryHost):
    """A host that makes every mark, and whose connection breaks before it says so."""

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Mark a guest."""
        super().mark(uuid, domain_id, origin)
        raise ConnectionLostError("gone")


def test_a_mark_whose_answer_was_lost(tmp_path: Path) -> None:
    """It is there without a pin: the next connection takes it away, the next process, too."""
    for same_process in (True, False):
        host = LosesAnswers(4, {"g": 0.5}, {"g": "0"})
        book = Book(LedgerFile(tmp_path))
        kept = Watched(host, book, [])
        reading(kept, host, "g")
        grow_up(kept, host)
        with pytest.raises(ConnectionLostError):
            kept.put(vcpu(host, "g"), CpuSet.of([1]))
        assert host.definitions["g"].origin
        mended = MemoryHost(4, {"g": 0.5}, {"g": "0"})
        mended.definitions, mended.now_ns = host.definitions, host.now_ns
        mended.run_ns = host.run_ns
        later = Watched(mended, book if same_process else Book(LedgerFile(tmp_path)), [])
        reading(later, mended, "g")
        # The next process does not know that there was no pin: libvirt may be making it still.
        assert bool(mended.definitions["g"].origin) == (not same_process)
        mended.now_ns += UNSEEN_NS_MAX
        for _ in range(2):
            grow_up(later, mended)
        assert not mended.definitions["g"].origin
        assert "uuid" not in (tmp_path / "affinity.json").read_text()


def test_what_cannot_be_restored_is_reported_and_kept(tmp_path: Path) -> None:
    """A guest that is busy: the others are restored, and it is, too, once it is not."""
    busy: list[str] = []

    def on_pin(name: str) -> None:
        if name in busy:
            raise BusyError("the domain is busy")

    host = MemoryHost(2, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"), on_pin)
    kept = keeper(host, tmp_path)
    run(kept, host, Scheduler(), 4)
    busy.append(host.pins[0][0])
    assert sorted(why(one) for one in kept.restore()) == ["", "the domain is busy"]
    busy.clear()
    assert [why(one) for one in keeper(host, tmp_path).restore()] == [""]
    assert {str(cpus) for cpus in host.cpus.values()} == {"0"}


def test_restored_guests_are_held_until_released(tmp_path: Path) -> None:
    """Restore with a hold: no further pin of that guest, also none by the next run."""
    host, kept, scheduler, name, _changes = balanced(tmp_path)
    kept.restore([DomainUuid(name)], hold=True)
    assert str(host.cpus[name]) == "0"
    assert "restored on request" in reading(kept, host, name).held
    run(kept, host, scheduler, 10)
    assert str(host.cpus[name]) == "0"
    later = keeper(host, tmp_path)
    assert reading(later, host, name).held
    assert later.release() == [name]
    assert not reading(later, host, name).held


@pytest.mark.parametrize("asked", [("g1",), ()])
def test_a_guest_that_was_never_read_is_not_said_to_be_held(
    asked: tuple[str, ...], tmp_path: Path
) -> None:
    """Nobody knows yet which run of it there is: asked again, once it is read, it is held."""
    host = MemoryHost(2, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    kept, request = keeper(host, tmp_path), Request(Verb.RESTORE, asked)
    host.unread = {"g1"}
    answer = carry_out(kept, request, beside_service=True)
    assert answer.problems == ("g1: it cannot be read yet, so it is not held; try again",)
    assert (answer.status, any("g1" in line for line in answer.lines)) == (1, False)
    assert not any("All guests are held" in line for line in answer.lines)
    host.unread.clear()
    assert carry_out(kept, request, beside_service=True).status == 0
    assert reading(kept, host, "g1").held


def test_libvirtd_gives_ids_anew(tmp_path: Path) -> None:
    """After its restart a guest with more CPU time is the same one, whatever its id."""
    host, _kept, _scheduler, name, _changes = balanced(tmp_path)
    host.domain_ids = {guest: number + 40 for guest, number in host.domain_ids.items()}
    later = keeper(host, tmp_path)
    assert reading(later, host, name).ours
    # Later, another id is another run, however long it has run.
    run_ns = dict(host.run_ns)
    for guest in NAMES:
        host.restart(guest)
    host.run_ns = run_ns
    assert not reading(later, host, name).ours


def test_the_file_forgets_what_is_undone(tmp_path: Path) -> None:
    """A pin back to where a guest was leaves no entry behind the next sample."""
    host, kept, _scheduler, name, _changes = balanced(tmp_path)
    kept.put(vcpu(host, name), CpuSet.of([0]))
    assert name in (tmp_path / "affinity.json").read_text()
    reading(kept, host, name)
    assert name not in (tmp_path / "affinity.json").read_text()


def test_entries_of_guests_that_ended_are_dropped(tmp_path: Path) -> None:
    """In the file, too, at once; a guest that cannot be read is kept."""
    host, kept, _scheduler, name, _changes = balanced(tmp_path)
    other = host.pins[1][0]
    host.unread.add(other)
    del host.wants[name]
    kept.look()
    text = (tmp_path / "affinity.json").read_text()
    assert name not in text
    assert other in text


def test_marks_go_with_their_pins(tmp_path: Path) -> None:
    """Written before each pin, with what may be in force, and taken away with the last."""
    host, kept, _scheduler, name, _changes = balanced(tmp_path)
    other = host.pins[1][0]
    assert {guest for guest in NAMES if host.definitions[guest].origin} == {name, other}
    pins = frozenset({CpuSet.of([0]), CpuSet.of([1])})
    assert host.definitions[name].origin == {0: Origin(CpuSet.of([0]), pins)}
    host.pin(vcpu(host, other), CpuSet.of([0]))
    assert reading(kept, host, other).held
    assert not host.definitions[other].origin
    kept.restore()
    assert not host.definitions[name].origin


class Session(MemoryHost):
    """A host over a connection that never breaks."""

    def is_alive(self) -> bool:
        """Report that it stands."""
        return True

    def close(self) -> None:
        """Let go of nothing."""


def marked_in_vain() -> tuple[Session, list[str]]:
    """Give a host whose guest bears a mark and has no pin of ours, and whose mark was written."""
    host = Session(2, {"g": 0.25}, {"g": "0"})
    known = host.definitions["g"]
    mark = {0: Origin(CpuSet.of([0]), frozenset({CpuSet.of([1])}))}
    host.definitions["g"] = dataclasses.replace(known, origin=mark)
    written: list[str] = []
    host.on_mark = written.append
    return host, written


@pytest.mark.parametrize("rests", [Rules(dry_run=True), Rules(paused=True)])
def test_no_mark_is_touched_in_a_dry_run_or_a_pause(rests: Rules, tmp_path: Path) -> None:
    """A mark that is to go stays until it is over; as the service runs its cycles."""
    host, written = marked_in_vain()
    ended = threading.Semaphore(0)
    worker = Worker(lambda: host, Book(LedgerFile(tmp_path)), ended.release)
    worker.connect()
    assert ended.acquire(timeout=60)
    worker.take()
    for rules, marks in ((rests, []), (rests, []), (Rules(), ["g"]), (Rules(), ["g"])):
        host.pass_time(YOUNG_NS / 1e9)
        worker.cycle(rules)
        assert ended.acquire(timeout=60)
        assert [type(outcome) for outcome in worker.take()] == [Cycled]
        assert written == marks
    assert not host.definitions["g"].origin
    worker.cancel()
    assert worker.join(60)


def test_who_only_looks_touches_no_mark(tmp_path: Path) -> None:
    """As `vcpusched plan` does."""
    host, written = marked_in_vain()
    kept = Reconciler(host, Book(LedgerFile(tmp_path), writes=False))
    for _ in range(3):
        host.pass_time()
        assert not kept.sample().domains[0].vcpus[0].held
    assert written == []
    assert not any(tmp_path.iterdir())


def test_no_pin_without_a_mark(tmp_path: Path) -> None:
    """A guest that takes none is not pinned, and nothing is left to be restored; others are."""
    host = MemoryHost(2, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    refuses: list[str] = []

    def on_mark(name: str) -> None:
        refuses.append(name)
        if name == refuses[0]:
            raise BusyError("the domain is busy")

    host.on_mark = on_mark
    kept, scheduler = keeper(host, tmp_path), Scheduler()
    run(kept, host, scheduler, 8)
    assert refuses[0] not in {name for name, _cpus in host.pins}
    assert len(host.pins) == 2
    assert not reading(kept, host, refuses[0]).ours
    assert refuses[0] not in (tmp_path / "affinity.json").read_text()


def test_a_marked_pin_is_ours_wherever_it_wakes(tmp_path: Path) -> None:
    """A guest that was saved or migrated with our pin and mark: adopted, and restored.

    Where it came from may have had other pCPUs, and "anywhere" means anywhere here.
    """
    for origin, original in (("all", "0-3"), ("1-2", "1-2"), ("2,9", "2"), ("8-9", "0-3")):
        cpus = ALL_CPUS if origin == "all" else CpuSet.parse(origin)
        host = MemoryHost(4, {"g": 0.5}, {"g": "3"})
        mark = {0: Origin(cpus, frozenset({CpuSet.of([1]), CpuSet.of([3])}))}
        host.definitions["g"] = dataclasses.replace(host.definitions["g"], origin=mark)
        changes: list[Changed] = []
        kept = keeper(host, tmp_path / origin, changes)
        (tmp_path / origin).mkdir()
        assert reading(kept, host, "g").ours
        assert changes == []
        assert [str(given.move.to_cpus) for given in kept.restore()] == [original]
        assert str(host.cpus["g"]) == original
        assert not host.definitions["g"].origin


def test_a_person_s_pin_beside_a_mark_is_the_person_s(tmp_path: Path) -> None:
    """Made where no vcpusched ran: the guest may be moved as any other, and the mark goes."""
    host = MemoryHost(4, {"g": 0.5}, {"g": "2"})
    pins = frozenset({CpuSet.of([1]), CpuSet.of([3])})
    mark = {0: Origin(CpuSet.of([0]), pins)}
    host.definitions["g"] = dataclasses.replace(host.definitions["g"], origin=mark)
    kept = keeper(host, tmp_path)
    assert not any(reading(kept, host, "g").ours for _second in range(12))
    assert not host.definitions["g"].origin
    assert kept.restore() == []


def test_the_books_say_whose_pin_it_is_while_a_guest_wakes(tmp_path: Path) -> None:
    """Its threads may still run anywhere then: what bears the mark is ours all the same."""
    host = MemoryHost(4, {"g": 0.5}, {"g": "0-3"})
    mark = {0: Origin(CpuSet.of([0]), frozenset({CpuSet.of([3])}))}
    host.definitions["g"] = dataclasses.replace(
        host.definitions["g"], origin=mark, booked={0: CpuSet.of([3])}
    )
    kept = keeper(host, tmp_path)
    assert reading(kept, host, "g").ours
    assert [str(given.move.to_cpus) for given in kept.restore()] == ["0"]


def test_a_restore_leaves_what_a_person_pinned_a_moment_after_a_guest_woke(tmp_path: Path) -> None:
    """Libvirt's books, which were read before, still have our pin."""
    host = MemoryHost(4, {"g": 0.5}, {"g": "2"})
    mark = {0: Origin(CpuSet.of([0]), frozenset({CpuSet.of([3])}))}
    host.definitions["g"] = dataclasses.replace(
        host.definitions["g"], origin=mark, booked={0: CpuSet.of([3])}
    )
    kept = keeper(host, tmp_path)
    assert [why(one) for one in kept.restore()] == ["someone else has just pinned it to pCPU 2"]
    assert str(host.cpus["g"]) == "2"


def test_a_pin_made_again_without_offline_pcpus_is_marked(tmp_path: Path) -> None:
    """The kernel reset it when a pCPU went offline: the mark names first what is then pinned."""
    pins = []

    def on_pin(name: str) -> None:
        pins.append(host.definitions[name].origin[0].pins)

    host = MemoryHost(4, {"g": 0.5}, {"g": "0"}, on_pin)
    kept = keeper(host, tmp_path)
    reading(kept, host, "g")
    kept.put(vcpu(host, "g"), CpuSet.of([1, 2]))
    reading(kept, host, "g")
    host.online = CpuSet.of([0, 1, 3])
    host.cpus["g"] = host.online
    reading(kept, host, "g")
    assert host.cpus["g"] == CpuSet.of([1])
    assert CpuSet.of([1]) not in pins[0]
    assert CpuSet.of([1]) in pins[1]


def test_a_pin_made_again_without_offline_pcpus_stays_ours(tmp_path: Path) -> None:
    """Once they are back, too: it is no other's pin, and the original is restored."""
    host, changes = MemoryHost(4, {"g": 0.5}, {"g": "3"}), list[Changed]()
    host.takes_offline = False
    kept = keeper(host, tmp_path, changes)
    reading(kept, host, "g")
    kept.put(vcpu(host, "g"), CpuSet.parse("0-1"))
    reading(kept, host, "g")
    host.online = CpuSet.parse("0,2-3")
    host.cpus["g"] = host.online
    reading(kept, host, "g")
    assert host.pins[-1] == ("g", "0")
    host.online = CpuSet.parse("0-3")
    assert reading(kept, host, "g").ours
    assert [changed.move.cause for changed in changes] == [Cause.RESET]
    kept.restore()
    assert str(host.cpus["g"]) == "3"


def test_a_mark_never_leads_out_of_the_definition(tmp_path: Path) -> None:
    """Who can write metadata cannot have a guest put where it must not be."""
    host = MemoryHost(4, {"g": 0.5}, {"g": "1"})
    host.definitions["g"] = dataclasses.replace(
        host.definitions["g"],
        allowed={0: CpuSet.of([0, 1])},
        origin={0: Origin(CpuSet.of([2, 3]), frozenset({CpuSet.of([1])}))},
    )
    kept = keeper(host, tmp_path)
    assert reading(kept, host, "g").ours
    assert [str(given.move.to_cpus) for given in kept.restore()] == ["0-1"]


def test_a_floating_guest_is_marked_as_such(tmp_path: Path) -> None:
    """One that may be anywhere is so on a larger host, too."""
    host = MemoryHost(2, {"a": 0.5, "b": 0.5}, {"a": "0", "b": "0-1"})
    kept = keeper(host, tmp_path)
    kept.sample()
    kept.put(vcpu(host, "b"), CpuSet.of([1]))
    assert host.definitions["b"].origin[0].original == ALL_CPUS


def test_a_book_that_was_closed_is_not_written(tmp_path: Path) -> None:
    """A worker that was abandoned wakes up from a pin, and would make another."""
    host, kept, _scheduler, name, _changes = balanced(tmp_path)
    book = Book(LedgerFile(tmp_path))
    abandoned = Watched(host, book, [])
    abandoned.sample()
    book.close()
    before = (tmp_path / "affinity.json").read_text()
    with pytest.raises(NotRecordedError):
        abandoned.put(vcpu(host, name), CpuSet.of([0]))
    abandoned.book.catch_up()
    assert (tmp_path / "affinity.json").read_text() == before
    assert kept.restore()


def test_who_was_abandoned_does_nothing_any_more(tmp_path: Path) -> None:
    """It wakes up in the middle of a restore, or of a sample that finds a pin reset."""
    host, _kept, _scheduler, name, _changes = balanced(tmp_path)
    book = Book(LedgerFile(tmp_path))
    abandoned = Watched(host, book, [])
    reading(abandoned, host, name)
    pins, marks = len(host.pins), dict(host.definitions)
    book.close()
    with pytest.raises(ConnectionLostError):
        abandoned.restore()
    host.cpus[name] = CpuSet.parse("0-1")
    with pytest.raises(ConnectionLostError):
        reading(abandoned, host, name)
    assert (len(host.pins), host.definitions) == (pins, marks)


def test_another_libvirt_knows_nothing_of_our_guests(tmp_path: Path) -> None:
    """Restore asked of an empty host, as with a wrong URI: nothing is forgotten, twice in a row."""
    host, _kept, _scheduler, _name, _changes = balanced(tmp_path)
    before = (tmp_path / "affinity.json").read_text()
    for _ in range(2):
        stranger = keeper(MemoryHost(2, {}, {}), tmp_path)
        answer = carry_out(stranger, Request(Verb.RESTORE), beside_service=False)
        assert (answer.status, answer.lines) == (0, ("No vCPU is pinned by vcpusched.",))
    assert parse((tmp_path / "affinity.json").read_text()) == parse(before)
    assert len(keeper(host, tmp_path).restore()) == 2


def test_another_libvirts_guests_are_left_in_the_ledger(tmp_path: Path) -> None:
    """A service at another address, for long: nothing of the first one's is lost, and it is said.

    Nor is it released there; an address of the same libvirt's finds all of it.
    """
    book = Book(LedgerFile(tmp_path), "qemu:///system")
    host = MemoryHost(4, {"g": 0.5, "held": 0.5}, {"g": "0", "held": "0"})
    kept = Watched(host, book, [])
    reading(kept, host, "g")
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    kept.restore([DomainUuid("held")], hold=True)
    reading(kept, host, "g")
    host.domain_ids = {guest: number + 40 for guest, number in host.domain_ids.items()}
    other = MemoryHost(4, {"x": 0.5}, {"x": "0"})
    book = Book(LedgerFile(tmp_path), "qemu:///session")
    stranger = Watched(other, book, [])
    for _ in range(3):
        other.pass_time(50)
        stranger.look()
    stranger.put(vcpu(other, "x"), CpuSet.of([1]))
    assert "Guests at qemu:///system in the ledger (2) are left as they are" in book.elsewhere()
    answer = carry_out(stranger, Request(Verb.RESTORE), beside_service=False)
    assert (answer.status, len(answer.lines), len(answer.problems)) == (1, 1, 1)
    assert "vcpusched restore --uri qemu:///system" in answer.problems[0]
    assert stranger.release() == []
    book = Book(LedgerFile(tmp_path), "qemu+unix:///system")
    found = Watched(host, book, [])
    assert (reading(found, host, "g").ours, bool(reading(found, host, "held").held)) == (True, True)
    assert book.elsewhere() == ""
    assert [str(given.move.to_cpus) for given in found.restore()] == ["0"]


class FullDisk(LedgerFile):
    """A ledger file on a disk that can be full."""

    is_full = False

    def replace(self, text: str) -> None:
        """Replace the file."""
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().replace(text)


def test_a_guest_that_starts_long_after_us_is_another_run_at_any_address(tmp_path: Path) -> None:
    """Its record of another address says nothing of it, even where it has run for longer by now.

    Where its definition has it is no pin of ours, whose original would be restored.
    """
    for uri in ("qemu:///system", "qemu+unix:///system"):
        host = MemoryHost(4, {"g": 0.5, "x": 0.5}, {"g": "0", "x": "0"})
        (tmp_path / uri[:5]).mkdir(exist_ok=True)
        file = LedgerFile(tmp_path / uri[:5])
        kept = Watched(host, Book(file, "qemu:///system"), [])
        reading(kept, host, "g")
        kept.put(vcpu(host, "g"), CpuSet.of([1]))
        reading(kept, host, "g")
        then = Watched(host, Book(file, uri), [])
        del host.wants["g"]
        for _ in range(3):
            host.pass_time(50)
            then.look()
        host.add("g", 0.5, "1")
        host.run_ns["g"] = 200 * 10**9
        assert not reading(then, host, "g").ours


def test_a_full_disk_keeps_nobody_from_getting_back(tmp_path: Path) -> None:
    """What it takes to undo pins is written already; the file is put right once there is room."""
    host, _kept, _scheduler, _name, _changes = balanced(tmp_path)
    file = FullDisk(tmp_path)
    kept = Watched(host, Book(file), [])
    file.is_full = True
    assert [why(one) for one in kept.restore()] == ["", ""]
    assert {str(cpus) for cpus in host.cpus.values()} == {"0"}
    file.is_full = False
    reading(kept, host, "g0")
    assert "original" not in (tmp_path / "affinity.json").read_text()


def test_a_pool_set_in_a_pause_stays(tmp_path: Path) -> None:
    """While nothing is pinned someone else lets it use both pCPUs: restore must not undo that.

    What the kernel reset meanwhile is no external change, and is restored.
    """
    host, kept, _scheduler, name, _changes = balanced(tmp_path)
    other = next(found for found, _cpus in host.pins if found != name)
    kept.rests = True
    host.cpus[name] = host.cpus[other] = CpuSet.parse("0-1")
    known = host.definitions[name]
    host.definitions[name] = dataclasses.replace(known, booked={0: CpuSet.parse("0-1")})
    reading(kept, host, name)
    assert [one.move.domain for one in kept.restore()] == [other]
    assert (str(host.cpus[name]), str(host.cpus[other])) == ("0-1", "0")


def test_files_can_be_read_whatever_the_umask(tmp_path: Path) -> None:
    """Root's may be 077; the service, which is not root, must read what root wrote."""
    before = os.umask(0o077)
    try:
        balanced(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "affinity.json").stat().st_mode) == 0o644


class Pairs(MemoryHost):
    """Guests have two vCPUs each, whose affinities are their own."""

    def __init__(self, cpus: str) -> None:
        super().__init__(4, {"g": 0.5}, {"g": cpus})
        self.definitions = {"g": Definition(dict.fromkeys((0, 1), ALL_CPUS))}
        self.second = self.cpus["g"]
        self.marked = 0

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Pin a vCPU."""
        if vcpu.vcpu == 0:
            super().pin(vcpu, cpus)
        else:
            self.second = cpus

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Give what a vCPU may use."""
        return super().affinity(vcpu) if vcpu.vcpu == 0 else self.second

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Mark the guest, and count that."""
        self.marked += 1
        super().mark(uuid, domain_id, origin)

    def _read(self, name: str) -> DomainReading:
        read = super()._read(name)
        second = dataclasses.replace(read.vcpus[0], vcpu=1, affinity=self.second)
        return dataclasses.replace(read, vcpus=(*read.vcpus, second))


class CountingFile(LedgerFile):
    """A ledger file that counts how often it is written."""

    count = 0

    def replace(self, text: str) -> None:
        """Replace the file."""
        self.count += 1
        super().replace(text)


@pytest.mark.parametrize("tried", [0, 1, 2])
def test_one_batch_for_all_moves_of_a_guest(tmp_path: Path, tried: int) -> None:
    """Ledger and mark are written once, before the first of two; then one may never be tried.

    Of that nothing is left: another's pin to the same pCPU is that one's, and what was made is
    restored.
    """
    host, file = Pairs("0"), CountingFile(tmp_path)
    kept = Watched(host, Book(file), [])
    for _ in range(2):
        kept.look()
        grow_up(kept, host)
    ids = [VcpuId(DomainUuid("g"), host.domain_ids["g"], number) for number in (0, 1)]
    moves = [Move(one, "g", CpuSet.of([0]), CpuSet.of([2]), 0, "") for one in ids]
    before = file.count, host.marked
    kept.intend(moves)
    assert (file.count, host.marked) == (before[0] + 1, before[1] + 1)
    for one in ids[:tried]:
        kept.pin(one, CpuSet.of([2]))
    assert file.count == before[0] + 1
    if tried < 2:
        host.second = CpuSet.of([2])
    host.pass_time()
    first, second = kept.sample().domains[0].vcpus
    assert (first.ours, second.ours) == (tried > 0, tried == 2)
    assert bool(second.held) == (tried < 2)
    kept.look()
    kept.restore()
    assert (str(host.cpus["g"]), str(host.second)) == ("0", "0" if tried == 2 else "2")
    assert not host.definitions["g"].origin


def test_what_is_intended_stays_written_until_it_is_tried(tmp_path: Path) -> None:
    """Between two moves of one guest another one's are written down."""
    host = Pairs("0")
    host.add("h", 0.5, "0")
    kept = Watched(host, Book(LedgerFile(tmp_path)), [])
    for _ in range(2):
        kept.look()
        grow_up(kept, host)
    first, between, second = (
        VcpuId(DomainUuid(name), host.domain_ids[name], number)
        for name, number in (("g", 0), ("h", 0), ("g", 1))
    )
    there, to = CpuSet.of([0]), CpuSet.of([2])
    kept.intend([Move(one, "g", there, to, 0, "") for one in (first, second)])
    kept.pin(first, to)
    kept.intend([Move(between, "h", there, to, 0, "")])
    kept.pin(between, to)
    record = Book(LedgerFile(tmp_path)).ledger.record(second)
    assert record is not None
    assert (record.original, record.pending) == (there, to)
    kept.pin(second, to)
    assert len(kept.restore()) == 3


class TwoVcpus(MemoryHost):
    """Guests have two vCPUs each, alike."""

    def _read(self, name: str) -> DomainReading:
        read = super()._read(name)
        first = read.vcpus[0]
        return dataclasses.replace(read, vcpus=(first, dataclasses.replace(first, vcpu=1)))


def test_another_run_is_nothing_like_the_last(tmp_path: Path) -> None:
    """A guest that restarted while no service ran, and whose definition cannot be read at first.

    The ledger has only its vCPU 0, which was held, and that hold is over: nobody knows this run.
    """
    host = TwoVcpus(2, {"g0": 0.5}, {"g0": "0-1"})
    keeper = Watched(host, Book(LedgerFile(tmp_path)), [])
    keeper.look()
    grow_up(keeper, host)
    host.cpus["g0"] = CpuSet.parse("1")
    host.pass_time()
    keeper.look()
    assert keeper.sample().domains[0].vcpus[0].held
    written = json.loads((tmp_path / "affinity.json").read_text())
    del written["domains"][0]["vcpus"][1:]
    (tmp_path / "affinity.json").write_text(json.dumps(written))
    host.restart("g0")
    host.definitions["g0"] = Definition()
    keeper = Watched(host, Book(LedgerFile(tmp_path)), [])
    host.pass_time()
    host.run_ns["g0"] = 5
    assert [vcpu.held for vcpu in keeper.sample().domains[0].vcpus] == ["", ""]


def test_who_was_not_there_is_not_moved(tmp_path: Path) -> None:
    """A move of a vCPU that no sample has shown is refused before anything is written down."""
    host, kept, _scheduler, name, _changes = balanced(tmp_path)
    unknown = VcpuId(DomainUuid(name), host.domain_ids[name], 9)
    before = (tmp_path / "affinity.json").read_text()
    with pytest.raises(VanishedError):
        kept.intend([Move(unknown, name, CpuSet(), CpuSet.of([1]), 0, "")])
    assert (tmp_path / "affinity.json").read_text() == before


def test_who_ends_meanwhile_is_no_failure(tmp_path: Path) -> None:
    """Nothing is left to restore for a guest that ends while its neighbours get theirs."""
    ends: list[str] = []

    def vanish(name: str) -> None:
        if name in ends:
            raise VanishedError("no such domain")

    host = MemoryHost(2, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"), on_pin=vanish)
    kept = keeper(host, tmp_path)
    run(kept, host, Scheduler(), 4)
    ends.append(host.pins[0][0])
    answer = carry_out(kept, Request(Verb.RESTORE), beside_service=False)
    assert (answer.status, answer.problems) == (0, ())
    assert f"vCPU 0 of {ends[0]} has ended meanwhile" in answer.lines
