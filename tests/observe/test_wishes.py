"""Each wish of the administrator's, by itself, through the production scheduler in memory.

Four pCPUs: {30 30 30} {10} {} {}, guests a, b, c and d. Left to itself one guest goes to each of
the idle pCPUs; every test says what keeps whom from where.
"""

import dataclasses
from collections.abc import Mapping

import pytest
from builders import MemoryHost

from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.model import ALL_CPUS, CpuSet
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.sample import Definition

WANTS = {"a": 0.3, "b": 0.3, "c": 0.3, "d": 0.1}
PLACES = {"a": "0", "b": "0", "c": "0", "d": "1"}


def cpus(text: str) -> CpuSet:
    """Read a list of pCPUs."""
    return CpuSet.parse(text)


def pins(
    rules: PlacementRules,
    isolated: str = "",
    more: Mapping[str, tuple[float, str]] | None = None,
    **definitions: Definition,
) -> list[tuple[str, str]]:
    """Give guest and target of each pin in ten cycles; `more` guests have a load and a place."""
    wants, places = dict(WANTS), dict(PLACES)
    for name, (want, place) in (more or {}).items():
        wants[name], places[name] = want, place
    host, scheduler = MemoryHost(4, wants, places), Scheduler()
    host.isolated = cpus(isolated)
    host.definitions |= definitions
    for _ in range(10):
        scheduler.cycle(host, Rules(placement_rules=rules))
        host.pass_time()
    return host.pins


def names(said: str, **more: object) -> Definition:
    """Give a definition that names pCPUs, and says something more."""
    definition = Definition({0: cpus(said) if said else ALL_CPUS})
    return dataclasses.replace(definition, **more)  # type: ignore[arg-type]


ANYTHING = PlacementRules()


def test_left_to_itself() -> None:
    """One guest goes to each of the idle pCPUs."""
    assert sorted(to_cpus for _, to_cpus in pins(ANYTHING)) == ["2", "3"]


@pytest.mark.parametrize(
    ("rules", "isolated", "spared"),
    [
        (PlacementRules("0-2"), "", "3"),
        (PlacementRules("all,^2"), "", "2"),
        (PlacementRules("0,2,3,^3"), "", "1,3"),
        (ANYTHING, "3", "3"),
        # Managed, but reserved for those that name them.
        (PlacementRules("all"), "3", "3"),
        (PlacementRules("0-3"), "3", "3"),
    ],
)
def test_pcpus_that_are_spared(rules: PlacementRules, isolated: str, spared: str) -> None:
    """The administrator does not want them managed, or the kernel isolates them."""
    made = pins(rules, isolated)
    assert made
    assert not any(cpus(to_cpus).is_within(cpus(spared)) for _, to_cpus in made)


@pytest.mark.parametrize("rules", [PlacementRules("all"), PlacementRules("0-3")])
def test_who_names_an_isolated_pcpu_may_go_there(rules: PlacementRules) -> None:
    """Once it is managed: named by the administrator, or nothing is excluded."""
    assert ("a", "3") in pins(rules, "3", a=names("0,3"))
    assert ("a", "3") not in pins(ANYTHING, "3", a=names("0,3"))


def test_an_empty_list_excludes_nothing() -> None:
    """What is bound to the pCPU that the kernel isolates may be moved then, and not before."""
    crowd = {"e": (0.6, "3"), "f": (0.6, "3")}
    assert not any(name in crowd for name, _ in pins(ANYTHING, "3", crowd))
    assert any(name in crowd for name, _ in pins(PlacementRules("all"), "3", crowd))


def test_definitions_are_never_left() -> None:
    """All three that crowd pCPU 0 are allowed two pCPUs: none goes to an idle one."""
    made = pins(ANYTHING, a=names("0-1"), b=names("0-1"), c=names("0,1"))
    assert {to_cpus for name, to_cpus in made if name in "abc"} == {"1"}


def test_a_pool_that_someone_keeps() -> None:
    """As numad for placement='auto': a live mask that is not the definition's is left alone.

    {30 30*} {} {30} {30}, where 30* floats on the first two: one that may use just these pCPUs by
    its definition is pinned to the second, or the other is.
    """
    places = {"b": (0.3, "2"), "c": (0.3, "3"), "d": (0.0, "1"), "pool": (0.3, "0-1")}
    assert dict(pins(ANYTHING, more=places, a=names("0"))) == {}
    free = pins(ANYTHING, more=places, a=names("0"), pool=names("0-1"))
    assert free == [("pool", "1")]


@pytest.mark.parametrize(
    ("owner", "reserved"),
    [
        (names("3"), "3"),
        (names("", realtime=frozenset({0})), "3"),
        (names("2-3", realtime=frozenset({0})), "2-3"),
    ],
)
def test_reserved_pcpus(owner: Definition, reserved: str) -> None:
    """Dedicated to one vCPU by its definition, or a realtime vCPU's: nobody else's, though idle."""
    made = pins(ANYTHING, more={"owner": (0.01, "3")}, owner=owner)
    assert made
    assert not any(cpus(to_cpus).is_within(cpus(reserved)) for _, to_cpus in made)
    assert "3" in dict(pins(ANYTHING, more={"owner": (0.01, "3")})).values()


def test_realtime_vcpus_are_never_moved() -> None:
    """Not even where it crowds pCPU 3 with one that may be nowhere else."""
    crowd = {"owner": (0.6, "3"), "beside": (0.5, "3")}
    for realtime, moved in ((frozenset[int](), True), (frozenset({0}), False)):
        owner = names("2-3", realtime=realtime)
        made = pins(ANYTHING, more=crowd, owner=owner, beside=names("3"))
        assert ("owner" in dict(made)) is moved


@pytest.mark.parametrize(
    ("rules", "wishes", "movable"),
    [
        (PlacementRules(include_domains=("[bc]",)), {}, {"b", "c"}),
        (PlacementRules(exclude_domains=("a", "c*")), {}, {"b", "d"}),
        (PlacementRules(include_domains=("a", "b"), exclude_domains=("b",)), {}, {"a"}),
        (ANYTHING, {"a": "hold", "b": "Hold", "c": ""}, {"d"}),
        (PlacementRules(exclude_domains=("*",)), {"a": "balance", "b": "spread"}, {"a", "b"}),
        (PlacementRules(include_domains=("a", "b")), {"a": "hold", "c": "balance"}, {"b", "c"}),
    ],
)
def test_who_may_be_moved(
    rules: PlacementRules, wishes: Mapping[str, str], movable: set[str]
) -> None:
    """By lists of domains, and by what a guest says of itself, which outranks them."""
    definitions = {name: names("", wish=wish) for name, wish in wishes.items()}
    moved = dict(pins(rules, "", None, **definitions))
    assert set(moved) <= movable
    assert bool(moved) == bool(movable & {"a", "b", "c"})
