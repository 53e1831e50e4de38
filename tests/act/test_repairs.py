"""Pins of ours that are not allowed any more give way; what the kernel reset is made again."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from builders import MemoryHost
from watched import NAMES, Watched, balanced, keeper, run, vcpu

from vcpusched.act.actuator import Event
from vcpusched.act.comparison import YOUNG_NS
from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.act.ledger import Changed
from vcpusched.act.reconciler import ASKED_MAX
from vcpusched.model import ALL_CPUS, CpuSet, DomainUuid, Granularity
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.plan.planner import Cause, Move
from vcpusched.report.messages import changed_entry
from vcpusched.sample import Definition, DomainReading
from vcpusched.service.control import Request, Verb
from vcpusched.service.restore import carry_out


def nothing(_host: MemoryHost, _name: str) -> None:
    """Leave the guests as they are."""


def wishes_hold(host: MemoryHost, name: str) -> None:
    """Have a guest ask for being left alone."""
    host.definitions[name] = dataclasses.replace(host.definitions[name], wish="hold")


def is_confined(host: MemoryHost, name: str) -> None:
    """Have a guest's definition name pCPU 0 only."""
    allowed = {0: CpuSet.of([0])}
    host.definitions[name] = dataclasses.replace(host.definitions[name], allowed=allowed)


def pcpu_is_owned(host: MemoryHost, _name: str) -> None:
    """Start a guest that owns pCPU 1."""
    host.add("owner", 0.1, "1")
    host.definitions["owner"] = Definition({0: CpuSet.of([1])})


FORBIDDEN = [
    (nothing, PlacementRules(exclude_domains=("g*",)), "excluded by"),
    (nothing, PlacementRules(cpus="0"), "does not allow"),
    (wishes_hold, PlacementRules(), "held by its metadata"),
    (is_confined, PlacementRules(), "does not allow"),
    (pcpu_is_owned, PlacementRules(), "does not allow"),
]


@pytest.mark.parametrize(("change", "placement", "why"), FORBIDDEN)
def test_what_is_not_allowed_any_more_gives_way(
    tmp_path: Path, change: Callable[[MemoryHost, str], None], placement: PlacementRules, why: str
) -> None:
    """Within two cycles, reported with the reason, and for good; not in a pause and a dry run."""
    host, kept, scheduler, name, changes = balanced(tmp_path)
    change(host, name)
    for rests in (
        Rules(placement_rules=placement, paused=True),
        Rules(placement_rules=placement, dry_run=True),
    ):
        for _ in range(3):
            cycle = scheduler.cycle(kept, rules=rests, on_event=kept.note)
            host.pass_time()
        assert str(host.cpus[name]) == "1"
        assert cycle.withheld > 0
    assert not changes
    for _ in range(2):
        scheduler.cycle(kept, Rules(placement_rules=placement), on_event=kept.note)
        host.pass_time()
    assert str(host.cpus[name]) == "0"
    assert not host.definitions[name].origin
    told = next(changed.move for changed in changes if changed.move.domain == name)
    assert told.cause is Cause.NOT_ALLOWED
    assert why in told.reason
    pins = len(host.pins)
    for _ in range(20):
        scheduler.cycle(kept, Rules(placement_rules=placement), on_event=kept.note)
        host.pass_time()
    assert name not in {pinned for pinned, _cpus in host.pins[pins:]}
    assert name not in (tmp_path / "affinity.json").read_text()


def test_a_definition_that_is_not_known_forbids_no_pin(tmp_path: Path) -> None:
    """As of a guest that a start finds in the ledger and cannot ask yet."""
    host, kept, scheduler, name, changes = balanced(tmp_path)
    host.definitions[name] = Definition({})
    for _ in range(3):
        cycle = scheduler.cycle(kept, Rules(), on_event=kept.note)
        host.pass_time()
    assert (str(host.cpus[name]), changes, cycle.withheld) == ("1", [], 0)


class Remembers(MemoryHost):
    """A host whose samples show each definition as it was when it was last asked for."""

    def __init__(
        self, wants: Mapping[str, float], cpus: Mapping[str, str], cpu_count: int = 2
    ) -> None:
        super().__init__(cpu_count, wants, cpus)
        self._known = dict(self.definitions)

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read a definition anew."""
        self._known[uuid] = super().definition(uuid)
        return self._known[uuid]

    def _read(self, name: str) -> DomainReading:
        return dataclasses.replace(super()._read(name), definition=self._known[name])


def remembered(directory: Path) -> tuple[Remembers, Watched, str]:
    """Return such a host after two pins, and one guest that was pinned."""
    host = Remembers(dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    kept = keeper(host, directory)
    run(kept, host, Scheduler(), 4)
    name = host.pins[0][0]
    host.definition(DomainUuid(name))
    return host, kept, name


def test_a_pin_is_not_made_again_where_an_edited_definition_forbids_it(tmp_path: Path) -> None:
    """The kernel reset it, and the sample has the definition as it was a minute ago."""
    host, kept, name = remembered(tmp_path)
    pins = len(host.pins)
    host.cpus[name] = CpuSet.of([0, 1])
    is_confined(host, name)
    for _ in range(2):
        kept.look()
        host.pass_time()
    assert host.pins[pins:] == [(name, "0")]


def test_a_pin_stays_that_an_edited_definition_allows_again(tmp_path: Path) -> None:
    """The sample has the definition that forbids it, as it was a minute ago."""
    host, kept, name = remembered(tmp_path)
    allowed = host.definitions[name]
    wishes_hold(host, name)
    host.definition(DomainUuid(name))
    host.definitions[name] = allowed
    kept.look()
    assert str(host.cpus[name]) == "1"
    wishes_hold(host, name)
    host.definition(DomainUuid(name))
    kept.look()
    assert str(host.cpus[name]) == "0"


def test_a_slice_that_is_narrowed_is_asked_about_a_few_guests_at_a_time(tmp_path: Path) -> None:
    """No cycle waits for hundreds of definitions, and in the end it was nobody's pin."""
    names = [f"g{number}" for number in range(3 * ASKED_MAX)]
    host = Remembers(dict.fromkeys(names, 0.01), dict.fromkeys(names, "0-3"), 4)
    changes: list[Changed] = []
    kept = keeper(host, tmp_path, changes)
    for _ in range(2):
        kept.look()
        host.pass_time(YOUNG_NS / 1e9)
    host.cpus = dict.fromkeys(names, CpuSet.parse("0-1"))
    narrowed = Definition({0: ALL_CPUS}, booked={0: ALL_CPUS}, cpuset=CpuSet.parse("0-1"))
    host.definitions = dict.fromkeys(names, narrowed)
    read = []
    for _ in range(5):
        before = host.definitions_read
        kept.look()
        host.pass_time()
        read.append(host.definitions_read - before)
    assert (read, changes) == ([ASKED_MAX] * 3 + [0] * 2, [])
    # Whom a person confines then is a suspect like any other.
    host.pin(vcpu(host, "g7"), CpuSet.of([1]))
    kept.look()
    assert [(one.move.domain, one.move.cause) for one in changes] == [("g7", Cause.PINNED)]


def test_whose_turn_to_be_asked_about_has_not_come_is_held(tmp_path: Path) -> None:
    """A person pins a guest while a whole slice is narrowed: no plan moves it off before."""
    names = [f"g{number:03}" for number in range(3 * ASKED_MAX)]
    wants = dict.fromkeys(names, 0.0005) | {"zz": 0.4, "own": 0.5}
    host = Remembers(wants, dict.fromkeys(names, "0-3") | {"zz": "0-3", "own": "0"}, 4)
    kept, scheduler, events = keeper(host, tmp_path), Scheduler(), list[Event]()
    for _ in range(2):
        scheduler.cycle(kept, Rules(paused=True))
        host.pass_time(YOUNG_NS / 1e9)
    narrowed = Definition({0: ALL_CPUS}, booked={0: ALL_CPUS}, cpuset=CpuSet.parse("0-1"))
    host.cpus |= dict.fromkeys(names, CpuSet.parse("0-1")) | {"zz": CpuSet.of([0])}
    host.definitions |= dict.fromkeys(names, narrowed)
    host.definitions["zz"] = dataclasses.replace(narrowed, booked={0: CpuSet.of([0])})
    for _ in range(8):
        scheduler.cycle(kept, Rules(), on_event=events.append)
        host.pass_time()
        assert str(host.cpus["zz"]) == "0"
    assert [event.move.cause for event in events if event.move.domain == "zz"] == [Cause.PINNED]


def test_a_way_back_without_a_pcpu_waits(tmp_path: Path) -> None:
    """While all of the original is offline nothing is tried, and nobody blamed; then it goes."""
    host, kept, scheduler, name, _changes = balanced(tmp_path)
    host.definitions[name] = dataclasses.replace(host.definitions[name], wish="hold")
    host.online = CpuSet.of([1])
    host.cpus = dict.fromkeys(host.cpus, CpuSet.of([1]))
    for _ in range(20):
        assert not scheduler.cycle(kept, Rules()).failures
        host.pass_time()
    host.online = CpuSet.parse("0-1")
    for _ in range(2):
        scheduler.cycle(kept, Rules())
        host.pass_time()
    assert str(host.cpus[name]) == "0"


def test_a_pin_that_is_allowed_stays(tmp_path: Path) -> None:
    """Another guest owns the other pCPU, or another guest is excluded: nothing gives way."""
    host, kept, scheduler, name, changes = balanced(tmp_path)
    host.add("owner", 0.1, "0")
    host.definitions["owner"] = Definition({0: CpuSet.of([0])})
    for _ in range(5):
        scheduler.cycle(kept, Rules(placement_rules=PlacementRules(exclude_domains=("owner",))))
        host.pass_time()
    assert str(host.cpus[name]) == "1"
    assert not changes


def test_nothing_gives_way_while_nodes_are_not_known(tmp_path: Path) -> None:
    """The topology is not read yet: whether a pin is beside the guest's memory nobody knows."""
    host, kept, scheduler, name, changes = balanced(tmp_path)
    host.definitions[name] = dataclasses.replace(
        host.definitions[name], memory_nodes={0: frozenset({0})}, memory_strict={0: frozenset({0})}
    )
    for _ in range(3):
        scheduler.cycle(kept, Rules(), on_event=kept.note)
        host.pass_time()
    assert str(host.cpus[name]) == "1"
    assert not changes


def test_a_pin_to_a_set_gives_way_once_single_pcpus_are_wanted(tmp_path: Path) -> None:
    """As after `pin_to` is changed, or where "auto" finds no sets any more; not the other way."""
    host, changes = MemoryHost(4, {"g": 0.5}, {"g": "3"}), list[Changed]()
    host.nodes = {cpu: cpu // 2 for cpu in range(4)}
    kept, scheduler = keeper(host, tmp_path, changes), Scheduler()
    by_node = Rules(placement_rules=PlacementRules(granularity=Granularity.NODE))
    run(kept, host, scheduler, 12)
    kept.put(vcpu(host, "g"), CpuSet.parse("0-1"))
    for rules, cpus in ((by_node, "0-1"), (Rules(), "3")):
        for _ in range(3):
            scheduler.cycle(kept, rules, on_event=kept.note)
            host.pass_time()
        assert str(host.cpus["g"]) == cpus
    assert [changed.move.cause for changed in changes] == [Cause.NOT_ALLOWED]
    kept.put(vcpu(host, "g"), CpuSet.parse("1"))
    for _ in range(3):
        scheduler.cycle(kept, by_node, on_event=kept.note)
        host.pass_time()
    assert str(host.cpus["g"]) == "1"


def test_what_was_undone_and_is_not_allowed_any_more_is_not_pinned_again(tmp_path: Path) -> None:
    """The kernel lets a guest off its pin just as it is excluded: it gets its original back."""
    host, kept, scheduler, name, changes = balanced(tmp_path)
    host.cpus[name] = CpuSet.of([0, 1])
    rules = Rules(placement_rules=PlacementRules(exclude_domains=(name,)))
    scheduler.cycle(kept, rules, on_event=kept.note)
    assert str(host.cpus[name]) == "0"
    assert [changed.move.cause for changed in changes] == [Cause.NOT_ALLOWED]


def test_a_cycle_that_mends_plans_nothing(tmp_path: Path) -> None:
    """What it sampled is not so any more; the imbalance is to be found in two more periods."""
    host, kept, _scheduler, name, changes = balanced(tmp_path)
    scheduler = Scheduler()
    host.wants[name] = 0.9
    for _ in range(2):
        scheduler.cycle(kept, Rules(), on_event=kept.note)
        host.pass_time()
    host.cpus[name] = CpuSet.of([0, 1])
    cycle = scheduler.cycle(kept, Rules(), on_event=kept.note)
    assert cycle.plan is not None
    assert not cycle.executed
    assert [(one.move.domain, one.move.cause) for one in changes] == [(name, Cause.RESET)]


@pytest.mark.parametrize("takes_offline", [True, False])
@pytest.mark.parametrize("when", ["at the pin", "at the restore"])
def test_all_of_an_original_comes_back_or_stays_recorded(
    tmp_path: Path, when: str, *, takes_offline: bool
) -> None:
    """PCPU 3 is offline at the first pin, or when the original is restored.

    Where the kernel takes no offline pCPU what is missing is reported, and comes later.
    """
    host = MemoryHost(4, {"g": 0.5}, {"g": "0-3"})
    host.takes_offline = takes_offline
    kept = keeper(host, tmp_path)
    pcpu_3 = CpuSet.of([3])
    if when == "at the pin":
        host.online, host.cpus["g"] = host.present - pcpu_3, CpuSet.parse("0-2")
    for _ in range(2):
        kept.look()
        host.pass_time(YOUNG_NS / 1e9)
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    host.online = host.present if when == "at the pin" else host.present - pcpu_3
    kept.look()
    answer = carry_out(kept, Request(Verb.RESTORE), beside_service=False)
    is_whole = takes_offline or when == "at the pin"
    assert answer.status == (0 if is_whole else 1)
    assert str(host.definitions["g"].booked[0]) == ("0-3" if is_whole else "0-2")
    assert ("so it stays recorded" in answer.lines[0]) is not is_whole
    assert bool(kept.restore()) is not is_whole  # as long as that is so it is tried again
    if not is_whole:
        host.online = host.present
        kept.look()
        (event,) = kept.restore()
        assert isinstance(event, Changed)
        assert "stays recorded" not in changed_entry(event).message
    assert str(host.definitions["g"].booked[0]) == "0-3"
    assert "original" not in (tmp_path / "affinity.json").read_text()


def test_what_cannot_come_back_yet_stops_no_plan(tmp_path: Path) -> None:
    """A pin gives way, but for a pCPU that is offline: that is done once, and not in each cycle."""
    host = MemoryHost(4, {"g": 0.5}, {"g": "0-3"})
    host.takes_offline = False
    kept, scheduler = keeper(host, tmp_path), Scheduler()
    for _ in range(2):
        kept.look()
        host.pass_time(YOUNG_NS / 1e9)
    kept.put(vcpu(host, "g"), CpuSet.of([1]))
    host.online = host.present - CpuSet.of([3])
    rules = Rules(placement_rules=PlacementRules(exclude_domains=("g",)))
    repaired = []
    for _ in range(4):
        before = len(host.pins)
        scheduler.cycle(kept, rules)
        repaired.append(len(host.pins) - before)
        host.pass_time()
    assert (repaired, str(host.cpus["g"])) == ([1, 0, 0, 0], "0-2")
    host.online = host.present
    scheduler.cycle(kept, rules)
    assert str(host.cpus["g"]) == "0-3"


def test_a_repair_that_is_refused_is_not_tried_in_each_cycle(tmp_path: Path) -> None:
    """The guest is left alone for ten cycles, and may be moved at once when that ends well."""
    host, kept, scheduler, name, _changes = balanced(tmp_path)
    host.cpuset = CpuSet.of([1])  # which no definition says
    rules = Rules(placement_rules=PlacementRules(exclude_domains=(name,)))
    failures = []
    for _ in range(12):
        failures.append(len(scheduler.cycle(kept, rules).failures))
        host.pass_time()
    assert failures == [1, *[0] * 9, 1, 0]
    host.cpuset = ALL_CPUS
    for _ in range(20):
        scheduler.cycle(kept, rules)
        host.pass_time()
    assert str(host.cpus[name]) == "0"
    assert not scheduler.cycle(kept, rules).refused


def test_what_was_intended_ends_with_the_connection(tmp_path: Path) -> None:
    """What was written down for a move that was never tried makes nobody's pin ours."""
    host = MemoryHost(4, {"g": 0.5}, {"g": "0-3"})
    kept = keeper(host, tmp_path)
    kept.look()
    kept.intend([Move(vcpu(host, "g"), "g", CpuSet(), CpuSet.of([1]), 0, "")])
    assert "pending" in (tmp_path / "affinity.json").read_text()
    kept.book.catch_up()  # as the worker does before it lets go
    assert "pending" not in (tmp_path / "affinity.json").read_text()
    assert kept.restore() == []


def test_what_was_intended_ends_with_the_next_sample(tmp_path: Path) -> None:
    """A plan that was cancelled is not written down again with the moves of the next."""
    host = MemoryHost(4, {"g": 0.5, "h": 0.5}, {"g": "0-3", "h": "0-3"})
    kept = keeper(host, tmp_path)
    for name in host.wants:
        kept.look()
        kept.intend([Move(vcpu(host, name), name, CpuSet(), CpuSet.of([1]), 0, "")])
    assert (tmp_path / "affinity.json").read_text().count("pending") == 1


def test_no_pin_when_cancelled_while_the_mark_is_written(tmp_path: Path) -> None:
    """A stop that comes then finds no pin to restore, so none must be made any more."""
    host = MemoryHost(2, dict.fromkeys(NAMES, 0.25), dict.fromkeys(NAMES, "0"))
    kept, scheduler, marked = keeper(host, tmp_path), Scheduler(), list[str]()
    host.on_mark = marked.append
    for _ in range(4):
        scheduler.cycle(kept, Rules(), cancelled=lambda: bool(marked))
        host.pass_time()
    assert len(marked) == 1
    assert not host.pins
