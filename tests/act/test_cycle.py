"""One cycle after another on a host in memory: when it acts, and what it does when acting fails."""

import dataclasses
import itertools
import random
from pathlib import Path

import pytest
from builders import SECOND_NS, MemoryHost, crowded, run

from vcpusched.act.actuator import Event
from vcpusched.act.cycle import Cycle, Rules, Scheduler
from vcpusched.act.feedback import EARLY_PERIODS, Verdict
from vcpusched.act.ledger import Changed
from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    CpuRefusedError,
    HypervisorError,
    VanishedError,
)
from vcpusched.model import (
    ALL_CPUS,
    NO_CPUS,
    Cpu,
    CpuSet,
    DomainUuid,
    Granularity,
    Host,
    Topology,
    VcpuId,
)
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.plan.planner import Floating, Move, Plan, Policy, Stop, plan
from vcpusched.sample import Definition, Sample
from vcpusched.service.run_directory import LedgerFile


def test_acts_when_the_imbalance_is_confirmed() -> None:
    """The first cycle has no loads; the second finds the imbalance; the third acts."""
    host, scheduler = crowded(), Scheduler()
    assert run(scheduler, host, 1).plan is None
    waiting = run(scheduler, host, 1)
    assert (waiting.confirmed, waiting.executed, host.pins) == (1, False, [])
    acted = run(scheduler, host, 1)
    assert acted.executed
    assert [move.domain for move in acted.pinned] == [name for name, _ in host.pins]
    assert len(host.pins) == 2


def test_then_rests() -> None:
    """A host that was balanced sees no further pin."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 50)
    assert len(host.pins) == 2


def host_with_its_own_load() -> tuple[MemoryHost, Scheduler, Rules]:
    """Give {30 30} {30 30}, balanced but for what the host itself runs."""
    names = ["a", "b", "c", "d"]
    cpus = {name: str(index // 2) for index, name in enumerate(names)}
    rules = Rules(policy=Policy(min_gain_ppm=0), half_life_s=3)
    return MemoryHost(2, dict.fromkeys(names, 0.3), cpus), Scheduler(), rules


def test_guests_make_room_for_the_host() -> None:
    """[30 30 + 29] [30 30]: one pin makes it 59 and 90, further apart than before: none is made.

    With 50 of the host's own it is 110 and 60, and one pin makes it 80 and 90.
    """
    for own, pins in ((0.29, 0), (0.5, 1)):
        host, scheduler, rules = host_with_its_own_load()
        host.host_wants = {0: own, 1: 0.0}
        run(scheduler, host, 60, rules)
        assert len(host.pins) == pins, own


def test_noise_of_the_host_moves_nothing() -> None:
    """Between 0 and 30 points on each pCPU, anew every period, for 1,000 periods."""
    host, scheduler, rules = host_with_its_own_load()
    chance = random.Random(0)
    for _ in range(1000):
        host.host_wants = {cpu: chance.random() * 0.3 for cpu in (0, 1)}
        host.pass_time()
        scheduler.cycle(host, rules)
    assert host.pins == []


def test_after_a_plan_in_vain_nothing_is_planned_for_a_while() -> None:
    """{35 35 35} {}: one leaves, and all wait as before. After 20 s that is said.

    Soon it is {40 20} {20}: one pin would balance that. It is not even searched for, and five
    minutes after the verdict it is made.
    """
    searched, seen = list[int](), list[Cycle]()

    def decide(host: Host, policy: Policy) -> Plan:
        searched.append(len(seen) + 1)
        return plan(host, policy)

    host = MemoryHost(2, dict.fromkeys("abc", 0.35), dict.fromkeys("abc", "0"))
    host.waits = dict.fromkeys("abc", 0.5)
    host.host_wants = {0: 0.0, 1: 0.0}
    scheduler = Scheduler(decide=decide)
    while len(host.pins) < 2:
        seen.append(run(scheduler, host, 1))
        if len(seen) == 40:
            heavy, *_ = {"a", "b", "c"} - {host.pins[0][0]}
            host.wants = {**dict.fromkeys("abc", 0.2), heavy: 0.4}
    first, last = (cycle.number for cycle in seen if cycle.pinned)
    [(number, effect)] = [(cycle.number, effect) for cycle in seen for effect in cycle.effects]
    assert (effect.number, effect.verdict) == (first, Verdict.NO_HELP)
    assert (effect.waiting, effect.wait_before_ppm, effect.wait_ppm) == (3, 500_000, 500_000)
    assert number - first == 20
    assert last - number == 300 + Rules().confirm
    waited = range(number + 1, number + 301)
    assert not set(searched) & set(waited)
    plans = [cycle.plan for cycle in seen if cycle.number in waited and cycle.number > 41]
    assert {found.stop for found in plans if found is not None} == {Stop.IN_VAIN}
    assert not any(vcpu.fixed for cycle in seen[number:] if cycle.host for vcpu in cycle.host.vcpus)


def test_a_plan_that_was_broken_off_is_not_judged() -> None:
    """Its second pin fails, and all wait on, as they would not have: the next plan goes on."""

    def on_pin(_name: str) -> None:
        if len(host.pins) == 1 and not failed:
            failed.append(True)
            raise HypervisorError("timeout")

    failed = list[bool]()
    host, scheduler = crowded(on_pin), Scheduler()
    host.waits = dict.fromkeys(host.wants, 0.5)
    cycles = [run(scheduler, host, 1) for _ in range(8)]
    assert [cycle.number for cycle in cycles if cycle.pinned] == [3, 5]
    assert [len(cycle.failures) for cycle in cycles if cycle.pinned] == [1, 0]
    assert not any(effect.number == 3 for cycle in cycles for effect in cycle.effects)


def test_no_plan_is_made_before_it_is_known_what_the_last_one_brought() -> None:
    """{25 25 25 25} {} {50} {25 25}: two leave pCPU 0, and wait on. Soon after pCPU 2 idles.

    So soon the two of pCPU 3, of 50 by then, stay; once nobody waits one of them goes, and where
    all wait on and that did not help, none does. A rule that needs no confirmation waits for none
    of this.
    """
    for confirm, waits_on, after in ((2, False, 11), (2, True, None), (1, True, 7)):
        loads = {**dict.fromkeys("abcd", 0.25), "e": 0.5, **dict.fromkeys("fg", 0.25)}
        cpus = {**dict.fromkeys("abcd", "0"), "e": "2", **dict.fromkeys("fg", "3")}
        host, scheduler = MemoryHost(4, loads, cpus), Scheduler()
        host.waits = dict.fromkeys("abcd", 0.5)
        host.host_wants = dict.fromkeys(range(4), 0.0)
        acted = list[int]()
        for _ in range(40):
            cycle = run(scheduler, host, 1, Rules(confirm=confirm))
            acted += [cycle.number] if cycle.pinned else []
            if acted and cycle.number == acted[0] + 5:
                host.wants |= {"e": 0.0, "f": 0.5, "g": 0.5}
            if acted and cycle.number == acted[0] + 9 and not waits_on:
                host.waits = dict.fromkeys("abcd", 0.0)
        assert [number - acted[0] for number in acted[1:]] == ([] if after is None else [after])
        assert {name for name, _ in host.pins[:2]} <= set("abcd")
        assert all(name in "fg" for name, _ in host.pins[2:])


def bound_in_vain(
    directory: Path, elsewhere: float, original: str = "0-1"
) -> tuple[MemoryHost, Reconciler]:
    """Give two guests of 50 % that may use all pCPUs, bound to pCPU 0 by us, and wait half.

    `elsewhere` is how busy the other pCPUs are.
    """
    names, cpus = ["a", "b"], CpuSet.parse(original)
    host = MemoryHost(len(cpus), dict.fromkeys(names, 0.5), dict.fromkeys(names, original))
    host.waits = dict.fromkeys(names, 0.5)
    host.host_wants = {cpu: elsewhere if cpu else 0.0 for cpu in cpus}
    kept = Reconciler(host, Book(LedgerFile(directory)))
    kept.sample()
    for name in names:
        vcpu = VcpuId(DomainUuid(name), host.domain_ids[name], 0)
        kept.intend([Move(vcpu, name, cpus, CpuSet.of([0]), 0, "")])
        kept.pin(vcpu, CpuSet.of([0]))
    host.pins.clear()
    return host, kept


@pytest.mark.parametrize(("elsewhere", "freed"), [(0.0, 2), (0.3, 1), (0.6, 0)])
def test_those_that_wait_share_the_room_that_they_would_find(
    elsewhere: float, freed: int, tmp_path: Path
) -> None:
    """Each waits half of the time: an idle pCPU has room for both, one of 30 % for one of them.

    No plan is carried out in a cycle that freed any, since what it sampled is not so any more.
    """
    host, kept = bound_in_vain(tmp_path, elsewhere)
    scheduler = Scheduler()
    scheduler.cycle(kept, Rules(confirm=1))
    host.pass_time()
    cycle = scheduler.cycle(kept, Rules(confirm=1))
    assert len(cycle.waits) == 2
    assert [cpus for _name, cpus in host.pins if cpus == "0-1"] == ["0-1"] * freed
    assert cycle.executed == (freed == 0)


def test_no_original_is_restored_that_the_definition_does_not_allow_any_more(
    tmp_path: Path,
) -> None:
    """Edited since they were bound: one that may use pCPU 0 only stays there, and is reported.

    The other one, of which nothing was edited, goes.
    """
    host, kept = bound_in_vain(tmp_path, 0.0)
    scheduler = Scheduler()
    scheduler.cycle(kept, Rules())
    host.pass_time()
    # Of two vCPUs, one of which is not there: a pCPU for one alone would be its own.
    only = dict.fromkeys((0, 1), CpuSet.of([0]))
    host.definitions["a"] = Definition(only, booked={0: CpuSet.of([0])})
    cycle = scheduler.cycle(kept, Rules())
    assert host.pins == [("b", "0-1")]
    (failure,) = cycle.failures
    assert (failure.move.domain, failure.expected) == ("a", True)
    assert "does not allow that any more" in failure.why


@pytest.mark.parametrize("is_known", [True, False])
def test_a_way_back_is_cut_to_the_cpuset(tmp_path: Path, *, is_known: bool) -> None:
    """Version 1 of cgroups takes nothing else, and the sample may have the cpuset of before.

    What is missing stays recorded.
    """
    host, kept = bound_in_vain(tmp_path, 0.0, "0-2")
    host.takes_offline, host.cpuset = False, CpuSet.parse("0-1")
    told = Definition({0: ALL_CPUS}, booked={0: CpuSet.of([0])}, cpuset=host.cpuset)
    if is_known:
        host.definitions = dict.fromkeys(host.wants, told)
    else:
        # It is narrowed between the sample and the first pin.
        host.on_read = lambda name: host.definitions.update({name: told})
    scheduler, events = Scheduler(), list[Event]()
    scheduler.cycle(kept, Rules())
    host.pass_time()
    cycle = scheduler.cycle(kept, Rules(), on_event=events.append)
    assert (cycle.failures, host.pins) == ((), [("a", "0-1"), ("b", "0-1")])
    assert [str(one.missing) for one in events if isinstance(one, Changed)] == ["2", "2"]
    kept.book.catch_up()
    kept_pins = Book(LedgerFile(tmp_path)).ledger.pins()
    assert [str(record.original) for _vcpu, _entry, record in kept_pins] == ["0-2", "0-2"]


def floaters(floating: Floating) -> tuple[MemoryHost, Scheduler, Rules]:
    """Return two guests of 55 % that may use both pCPUs, and are seen on pCPU 0."""
    names = ["a", "b"]
    host = MemoryHost(2, dict.fromkeys(names, 0.55), dict.fromkeys(names, "0-1"))
    host.definitions = dict.fromkeys(names, Definition({0: CpuSet.parse("0-1")}))
    host.host_wants = {0: 0.0, 1: 0.0}
    host.waits = dict.fromkeys(names, 0.0)
    return host, Scheduler(), Rules(policy=Policy(floating=floating))


@pytest.mark.parametrize("floating", [Floating.AUTO, Floating.KERNEL])
def test_a_floater_that_waits_beside_room_is_bound(floating: Floating) -> None:
    """With "auto", once it waited in both of two periods in a row, whatever else waits."""
    host, scheduler, rules = floaters(floating)
    run(scheduler, host, 5, rules)
    for period in range(10):
        host.waits = {"a": 0.1 * (period % 2), "b": 0.1 * (1 - period % 2)}
        run(scheduler, host, 1, rules)
    assert host.pins == []
    host.waits = {"a": 0.1, "b": 0.04}
    run(scheduler, host, 3, rules)
    assert host.pins == ([("a", "1")] if floating is Floating.AUTO else [])


def test_floaters_are_bound_whatever_else_waits() -> None:
    """With "pin" that nobody waits does not matter."""
    host, scheduler, rules = floaters(Floating.PIN)
    run(scheduler, host, 3, rules)
    assert len(host.pins) == 1


def test_one_odd_sample_moves_nothing() -> None:
    """A guest busy in every third period only is never confirmed in two consecutive ones."""
    host, scheduler = MemoryHost(2, {"a": 0.3, "b": 0.3}, {"a": "0", "b": "1"}), Scheduler()
    host.add("c", 0.0, "0")
    for period in range(60):
        host.wants["c"] = 0.6 if period % 3 == 0 else 0.0
        host.wants["b"] = 0.3
        host.pass_time()
        scheduler.cycle(host, Rules())
    assert host.pins == []


def test_confirm_counts_periods() -> None:
    """With confirm = 5 the fifth unbalanced period acts; with 1 the first does."""
    host, scheduler = crowded(), Scheduler()
    assert not run(scheduler, host, 5, Rules(confirm=5)).executed
    assert run(scheduler, host, 1, Rules(confirm=5)).executed
    host, scheduler = crowded(), Scheduler()
    assert run(scheduler, host, 2, Rules(confirm=1)).executed


def test_a_dry_run_pins_nothing() -> None:
    """It decides as usual, and the host stays as it is."""
    host, scheduler = crowded(), Scheduler()
    cycle = run(scheduler, host, 3, Rules(dry_run=True))
    assert cycle.executed
    assert cycle.plan is not None
    assert len(cycle.plan.moves) == 2
    assert (cycle.pinned, host.pins) == ((), [])


def test_no_pin_after_cancelling() -> None:
    """Cancelled during the first pin, the plan ends there."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 2)
    cycle = scheduler.cycle(host, Rules(), cancelled=lambda: bool(host.pins))
    assert len(host.pins) == 1
    assert len(cycle.pinned) == 1


def test_no_pin_when_cancelled_while_the_definition_is_read() -> None:
    """That takes calls, too, in which SIGTERM may come."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 2)
    scheduler.cycle(host, Rules(), cancelled=lambda: host.definitions_read > 0)
    assert (host.definitions_read, host.pins) == (1, [])


def test_each_pin_is_reported_when_it_is_made() -> None:
    """A cycle that loses the connection in its second pin has reported the first."""
    told: list[Event] = []

    def lose_the_second(_name: str) -> None:
        if told:
            raise ConnectionLostError("gone")

    host, scheduler = crowded(lose_the_second), Scheduler()
    run(scheduler, host, 2)
    cycle = scheduler.cycle(host, Rules(), on_event=told.append)
    assert len(told) == len(host.pins) == 1
    assert cycle.lost == "gone"


@pytest.mark.parametrize("made", [True, False])
def test_a_pin_whose_answer_was_lost_is_reported_if_it_was_made(*, made: bool) -> None:
    """The connection died in the first pin: whether it was made shows in the next sample, once."""
    asked: list[str] = []

    def lose_the_first(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            if made:
                host.cpus[name] = CpuSet.of([1])
            raise ConnectionLostError("gone")

    host, scheduler = crowded(lose_the_first), Scheduler()
    told: list[Event] = []
    run(scheduler, host, 3)
    for _ in range(2):
        scheduler.cycle(host, Rules(paused=True), on_event=told.append)
    assert [event.move.domain for event in told] == (asked[:1] if made else [])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VanishedError("gone"), True),
        (HypervisorError("refused"), False),
        (BusyError("migrating"), False),
    ],
)
def test_a_pin_that_fails(error: HypervisorError, *, expected: bool) -> None:
    """It ends the plan, whose other moves may have needed it; the next one does without it."""
    asked: list[str] = []

    def fail_the_first(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise error

    host, scheduler = crowded(fail_the_first), Scheduler()
    cycle = run(scheduler, host, 3)
    assert host.pins == []
    assert [failure.expected for failure in cycle.failures] == [expected]
    run(scheduler, host, 4)
    assert len(host.pins) == 2


def test_half_an_exchange_is_undone() -> None:
    """[90 40] [60 15]: 90 is exchanged for 60; the second of the two refuses: both are at home."""
    asked: list[str] = []

    def refuse_the_second(name: str) -> None:
        asked.append(name)
        if len(asked) == 2:
            raise HypervisorError("refused")

    wants = {"a": 0.9, "b": 0.4, "c": 0.6, "d": 0.15}
    host = MemoryHost(2, wants, {"a": "0", "b": "0", "c": "1", "d": "1"}, refuse_the_second)
    events: list[Event] = []
    scheduler = Scheduler()
    run(scheduler, host, 2)
    cycle = scheduler.cycle(host, Rules(), on_event=events.append)
    made = [event.move for event in events if isinstance(event, Changed)]
    told = [(move.domain, str(move.to_cpus)) for move in made]
    assert len(events) == len(made) + len(cycle.failures)
    assert cycle.plan is not None
    assert cycle.plan.moves[0].exchanged_with == cycle.plan.moves[1].vcpu
    assert {name: str(cpus) for name, cpus in host.cpus.items()} == {
        "a": "0",
        "b": "0",
        "c": "1",
        "d": "1",
    }
    assert host.pins == told
    assert len(told) == 2


@pytest.mark.parametrize("is_lost", [False, True])
def test_half_an_exchange_is_written_down_as_undone(tmp_path: Path, *, is_lost: bool) -> None:
    """The same with a ledger: no pin is left in it, but where libvirtd ends before it is undone."""
    asked = list[str]()

    def refuse(name: str) -> None:
        asked.append(name)
        if len(asked) == 2:
            raise BusyError("being migrated")
        if len(asked) == 3 and is_lost:
            raise ConnectionLostError("gone")

    cpus = {"a": "0", "b": "0", "c": "1", "d": "1"}
    host = MemoryHost(2, {"a": 0.9, "b": 0.4, "c": 0.6, "d": 0.15}, cpus, refuse)
    kept, scheduler = Reconciler(host, Book(LedgerFile(tmp_path))), Scheduler()
    for _ in range(3):
        host.pass_time()
        cycle = scheduler.cycle(kept, Rules())
    assert cycle.lost == ("gone" if is_lost else None)
    assert (asked[0], len(asked)) == (asked[-1], 3)
    pins = [(entry.name, str(record.original)) for _, entry, record in kept.book.ledger.pins()]
    assert pins == ([(asked[0], cpus[asked[0]])] if is_lost else [])


def test_half_an_exchange_is_undone_when_cancelled() -> None:
    """[90 40] [60 15], and SIGTERM comes between the halves: both are at home."""
    cpus = {"a": "0", "b": "0", "c": "1", "d": "1"}
    host = MemoryHost(2, {"a": 0.9, "b": 0.4, "c": 0.6, "d": 0.15}, cpus)
    scheduler = Scheduler()
    run(scheduler, host, 2)
    cycle = scheduler.cycle(host, Rules(), cancelled=lambda: bool(host.pins))
    assert {name: str(cpus) for name, cpus in host.cpus.items()} == cpus
    assert [(move.domain, str(move.to_cpus)) for move in cycle.pinned] == host.pins
    assert len(host.pins) == 2


def test_a_guest_that_refuses_is_left_alone_for_a_while() -> None:
    """The others are balanced without it; it is asked again ever more seldom."""
    asked: list[int] = []

    def refuse_one(name: str) -> None:
        if name == "g0":
            asked.append(host.now_ns // SECOND_NS)
            raise BusyError("being migrated for an hour")

    host, scheduler = crowded(refuse_one), Scheduler()
    host.wants["g0"] = 0.5  # the best one to move
    run(scheduler, host, 200)
    assert len(host.pins) >= 1
    assert 1 <= len(asked) <= 5
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps == sorted(gaps)
    assert all(gap >= 10 for gap in gaps)


def test_a_pcpu_that_refuses_is_left_alone_for_a_while() -> None:
    """[20 20 20 20] [] []: the guests go to the other one, none is held; and that is reported."""
    names = [f"g{index}" for index in range(4)]
    asked: list[int] = []
    host = MemoryHost(
        3,
        dict.fromkeys(names, 0.2),
        dict.fromkeys(names, "0"),
        lambda _name: asked.append(host.now_ns // SECOND_NS),
    )
    host.cpuset = CpuSet.of([0, 2])
    scheduler = Scheduler()
    cycle = run(scheduler, host, 3)
    while not cycle.failures:  # those that go to pCPU 2 may come first
        cycle = run(scheduler, host, 1)
    assert cycle.failures[0].kind is CpuRefusedError
    cycle = run(scheduler, host, 9)
    assert cycle.refused
    assert {cpus for _, cpus in host.pins} == {"2"}
    assert len(host.pins) == 2
    assert cycle.host is not None
    assert {(str(vcpu.allowed), vcpu.fixed) for vcpu in cycle.host.vcpus} == {("0,2", False)}
    run(scheduler, host, 200)
    tries = [at_s for at_s in asked if at_s > 20]
    assert 1 <= len(tries) <= 5
    host.cpuset = ALL_CPUS
    cycle = run(scheduler, host, 700)
    assert not cycle.refused
    assert "1" in {cpus for _, cpus in host.pins}


def test_all_pcpus_that_a_guest_may_use_refuse() -> None:
    """Then it stays, and the reason is reported."""
    host, scheduler = crowded(), Scheduler()
    host.cpuset = CpuSet.of([5])
    run(scheduler, host, 3)
    host.definitions = dict.fromkeys(host.wants, Definition({0: CpuSet.of([1])}))
    cycle = run(scheduler, host, 2)
    assert cycle.host is not None
    whys = {vcpu.why for vcpu in cycle.host.vcpus}
    assert whys == {"all its pCPUs refused a pin and are in quarantine"}


def test_a_refusal_that_the_cpuset_explains() -> None:
    """It changed since the definition was read: that is read anew, and nobody is left alone.

    Not the pCPU either, which another guest may use.
    """
    names = [f"g{index}" for index in range(4)]

    def narrow(_name: str) -> None:
        host.cpuset = CpuSet.of([0, 1])
        told = Definition({0: ALL_CPUS}, cpuset=host.cpuset)
        host.definitions |= dict.fromkeys(names, told)

    wants, cpus = dict.fromkeys(names, 0.2), dict.fromkeys(names, "0")
    host = MemoryHost(3, {**wants, "wide": 0.0}, {**cpus, "wide": "2"}, narrow)
    scheduler = Scheduler()
    cycle = run(scheduler, host, 3)
    assert [failure.kind for failure in cycle.failures] == [CpuRefusedError]
    cycle = run(scheduler, host, 2)
    assert not cycle.refused
    assert cycle.host is not None
    allowed = {vcpu.domain: str(vcpu.allowed) for vcpu in cycle.host.vcpus}
    assert allowed == {**dict.fromkeys(names, "0-1"), "wide": "0-2"}
    run(scheduler, host, 3)
    assert sorted(str(host.cpus[name]) for name in names) == ["0", "0", "1", "1"]
    assert len(host.pins) == 2


class TwoNodes(MemoryHost):
    """A host of four pCPUs on two nodes."""

    def sample(self) -> Sample:
        """Read the host."""
        topology = Topology(tuple(Cpu(cpu, node=cpu // 2) for cpu in self.online))
        return dataclasses.replace(super().sample(), topology=topology)


def test_a_set_that_is_partly_outside_the_cpuset_is_refused() -> None:
    """As version 1 does: it says nothing of its pCPUs, so its guest is left alone for a while."""
    names = [f"g{index}" for index in range(4)]

    def narrow(_name: str) -> None:
        host.cpuset = NO_CPUS
        told = Definition({0: ALL_CPUS}, cpuset=CpuSet.parse("0-2"))
        host.definitions = dict.fromkeys(names, told)

    host = TwoNodes(4, dict.fromkeys(names, 0.9), dict.fromkeys(names, "0-1"), narrow)
    granularity = Granularity.NODE
    rules = Rules(Policy(pin_to=granularity), PlacementRules(granularity=granularity))
    scheduler = Scheduler()
    cycle = run(scheduler, host, 3, rules)
    (failure,) = cycle.failures
    assert (failure.kind, str(failure.move.to_cpus)) == (CpuRefusedError, "2-3")
    cycle = run(scheduler, host, 1, rules)
    assert cycle.refused
    assert cycle.host is not None
    whys = {vcpu.domain: vcpu.why for vcpu in cycle.host.vcpus}
    assert whys[failure.move.domain] == "its guest refused a pin and is in quarantine"
    assert len(set(whys.values())) > 1


def test_what_cannot_be_read_is_no_room() -> None:
    """[90] [40 40], balanced: the 90 cannot be read for three cycles; no pin."""
    wants = {"big": 0.9, "a": 0.4, "b": 0.4}
    host, scheduler = MemoryHost(2, wants, {"big": "0", "a": "1", "b": "1"}), Scheduler()
    run(scheduler, host, 3)
    host.unread = {"big"}
    run(scheduler, host, 3)
    host.unread = set()
    run(scheduler, host, 5)
    assert host.pins == []


def test_nothing_is_moved_beside_a_guest_just_started() -> None:
    """A guest on the least loaded pCPU appears as the plan is confirmed: its load is not 0."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 2)
    host.add("new", 0.9, "1")
    assert not run(scheduler, host, 1).executed
    run(scheduler, host, 6)
    assert len(host.pins) <= 2
    assert all(name != "new" for name, _ in host.pins)


@pytest.mark.parametrize(
    ("edited", "why"),
    [
        (Definition({0: CpuSet.of([0])}), "the guest's definition does not allow this pCPU"),
        (Definition({0: ALL_CPUS}, wish="hold"), "held by its metadata"),
        (Definition({0: ALL_CPUS}, realtime=frozenset({0})), "a realtime vCPU"),
    ],
)
def test_an_edited_definition_is_obeyed_before_the_move(edited: Definition, why: str) -> None:
    """It forbids pCPU 1, or any move, between the sample and the plan's first move."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 2)
    sample = host.sample()
    host.definitions = dict.fromkeys(host.wants, edited)

    class Edited:
        """The host with a sample from before the edit."""

        definition, pin, settle, intend = host.definition, host.pin, host.settle, host.intend

        @staticmethod
        def sample() -> object:
            return sample

    cycle = scheduler.cycle(Edited(), Rules())  # type: ignore[arg-type]
    assert cycle.executed
    assert host.pins == []
    assert [failure.why.startswith(why) for failure in cycle.failures] == [True]


def test_a_vcpu_that_may_not_be_moved_says_why() -> None:
    """By the rules of placement, after a move, and after a pin that was refused."""

    def refuse_one(name: str) -> None:
        if name == "g0":
            raise BusyError("being migrated")

    host, scheduler = crowded(refuse_one), Scheduler()
    host.wants["g0"] = 0.5  # the best one to move
    host.definitions["g1"] = Definition({0: ALL_CPUS}, wish="holdd")
    rules = Rules(cooldown_s=60, placement_rules=PlacementRules(exclude_domains=("g2",)))
    cycle = run(scheduler, host, 8, rules)
    assert cycle.host is not None
    assert {vcpu.domain: (vcpu.fixed, vcpu.why) for vcpu in cycle.host.vcpus} == {
        "g0": (True, "its guest refused a pin and is in quarantine"),
        "g1": (True, 'its metadata says policy="holdd", which is none of balance, hold, spread'),
        "g2": (True, 'excluded by "g2" in exclude_domains'),
        "g3": (True, "moved less than 60s ago"),
    }


def test_a_restarted_guest_is_unknown_for_a_period() -> None:
    """Its counter begins at 0 again: no wrong delta, no crash, no pin for its sake."""
    host, scheduler = MemoryHost(2, {"a": 0.4, "b": 0.4}, {"a": "0", "b": "1"}), Scheduler()
    run(scheduler, host, 3)
    host.restart("b")
    cycle = scheduler.cycle(host, Rules())
    assert cycle.host is not None
    assert [vcpu.domain for vcpu in cycle.host.vcpus] == ["a"]
    host.pass_time()
    run(scheduler, host, 5)
    assert host.pins == []


def test_a_counter_that_goes_backwards_begins_anew() -> None:
    """The same domain id, since libvirtd, too, was restarted: what was known is another vCPU's.

    It was 80 % and is 20 %; until it has settled it has no load at all.
    """
    host, scheduler = MemoryHost(1, {"a": 0.8}, {"a": "0"}), Scheduler()
    run(scheduler, host, 7)
    host.run_ns["a"], host.wants["a"] = 0, 0.2
    seen = [run(scheduler, host, 1).host for _ in range(12)]
    loads = [[vcpu.load_ppm for vcpu in found.vcpus] for found in seen if found is not None]
    assert loads == [*[[]] * 11, [200_000]]


def test_guests_that_come_and_go() -> None:
    """Guests vanish and appear between cycles; the rest is balanced as ever."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 2)
    del host.wants["g0"], host.wants["g1"]
    cycle = run(scheduler, host, 1)
    assert cycle.domains == 2
    assert {move.domain for move in cycle.pinned} <= {"g2", "g3"}


def test_a_sample_that_fails_raises() -> None:
    """A lost connection is reported to the caller, and the next cycle goes on from where it was."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 2)
    host.sample_error = ConnectionLostError("gone")
    with pytest.raises(ConnectionLostError):
        scheduler.cycle(host, Rules())
    host.sample_error = None
    assert run(scheduler, host, 1).executed


def test_a_vcpu_is_not_moved_twice_within_the_cooldown() -> None:
    """Other guests turn heavy every 12 s; no vCPU is pinned twice within 60 s.

    Without the cooldown the same host sees a vCPU pinned again sooner.
    """

    def pins_at(cooldown_s: float) -> dict[str, list[int]]:
        names = [f"g{index}" for index in range(6)]
        host = MemoryHost(2, dict.fromkeys(names, 0.1), dict.fromkeys(names, "0"))
        scheduler, pinned_at_s = Scheduler(), dict[str, list[int]]()
        rules = Rules(policy=Policy(min_gain_ppm=0), confirm=1, cooldown_s=cooldown_s)
        chance = random.Random(0)
        for second in range(300):
            if second % 12 == 0:
                heavy = chance.sample(names, 2)
                host.wants = {name: 0.4 if name in heavy else 0.05 for name in names}
            for move in scheduler.cycle(host, rules).pinned:
                pinned_at_s.setdefault(move.domain, []).append(second)
            host.pass_time()
        return pinned_at_s

    def shortest(pinned_at_s: dict[str, list[int]]) -> int:
        return min(
            later - earlier
            for times in pinned_at_s.values()
            for earlier, later in itertools.pairwise(times)
        )

    assert shortest(pins_at(0)) < 60
    assert shortest(pins_at(60)) >= 60


def test_the_cooldown_counts_a_pin_whose_answer_was_lost() -> None:
    """Nobody knows whether it was made, so it counts as made."""
    lost: list[str] = []

    def lose(name: str) -> None:
        if not lost:
            lost.append(name)
            raise ConnectionLostError("gone")

    host, scheduler = crowded(lose), Scheduler()
    run(scheduler, host, 20, Rules(cooldown_s=1000))
    assert lost[0] not in [name for name, _ in host.pins]
    assert host.pins


def test_at_rest_nothing_is_searched_for_again() -> None:
    """{70 70 70} {}: two go in one plan, and 140 | 70 stays; planned anew once a load changes."""
    asked: list[Policy] = []

    def decide(host: Host, policy: Policy) -> Plan:
        asked.append(policy)
        return plan(host, policy)

    host = MemoryHost(2, dict.fromkeys("abc", 0.7), dict.fromkeys("abc", "0"))
    scheduler = Scheduler(decide=decide)
    run(scheduler, host, EARLY_PERIODS + 2, Rules())
    assert len(host.pins) == 1
    # While loads are known from few periods more is asked of a pin.
    assert {policy.min_gain_ppm for policy in asked} == {50_000, 100_000, 150_000}
    settled = len(asked)
    run(scheduler, host, 10, Rules())
    assert len(asked) == settled
    host.wants["a"] = 0.65
    run(scheduler, host, 10, Rules())
    assert settled < len(asked) < settled + 10
    assert len(host.pins) == 1


def test_a_guest_that_boots_moves_nobody() -> None:
    """[20 20] [20 20]: a fifth guest floats at first and boots at 100 % for 8 s; no pin, ever.

    Bound to pCPU 1 instead, that pCPU is left alone until its load is known.
    """
    for cpus in ("0-1", "1"):
        names = [f"g{index}" for index in range(4)]
        host = MemoryHost(
            2, dict.fromkeys(names, 0.2), {name: str(index % 2) for index, name in enumerate(names)}
        )
        scheduler = Scheduler()
        rules = Rules(half_life_s=6)
        run(scheduler, host, 10, rules)
        host.add("new", 1.0, cpus)
        run(scheduler, host, 8, rules)
        host.wants["new"] = 0.02
        run(scheduler, host, 60, rules)
        assert host.pins == []
