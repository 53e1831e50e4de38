"""Sets of pCPUs, up to sizes and gaps that real machines have, and what vCPUs are pinned to."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcpusched.host.libvirt_xml import from_map, to_map
from vcpusched.model import Cpu, CpuSet, Granularity, resolved, sets

cpu_sets = st.frozensets(st.integers(0, 600)).map(CpuSet.of)


@given(cpu_sets)
def test_text_round_trip(cpus: CpuSet) -> None:
    """Whatever is written in cpulist syntax is read back as the same set."""
    assert CpuSet.parse(str(cpus)) == cpus


@given(cpu_sets)
def test_text_is_the_shortest(cpus: CpuSet) -> None:
    """Each part is as long as it can be: a gap follows it."""
    parts = [tuple(CpuSet.parse(part)) for part in str(cpus).split(",")]
    assert all(this[-1] + 1 < following[0] for this, following in itertools.pairwise(parts))


@given(cpu_sets)
def test_flags_round_trip(cpus: CpuSet) -> None:
    """The binding's map of booleans says the same as the set."""
    assert from_map(to_map(cpus, 601)) == cpus


@given(cpu_sets, cpu_sets)
def test_algebra_is_that_of_sets(one: CpuSet, other: CpuSet) -> None:
    """Union, intersection, difference, size and inclusion agree with Python's sets."""
    left, right = frozenset(one), frozenset(other)
    assert frozenset(one | other) == left | right
    assert frozenset(one & other) == left & right
    assert frozenset(one - other) == left - right
    assert len(one) == len(left)
    assert one.is_within(other) == (left <= right)


def test_cpulist_examples() -> None:
    """The syntax is the kernel's, with libvirt's exclusions."""
    assert list(CpuSet.parse("0-3,8")) == [0, 1, 2, 3, 8]
    assert list(CpuSet.parse("0-3,^2")) == [0, 1, 3]
    assert str(CpuSet.of([0, 1, 2, 5, 130, 131])) == "0-2,5,130-131"
    assert list(CpuSet.parse("")) == []
    assert str(CpuSet.parse("511")) == "511"


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "65536", "9" * 30, "1-²", "0x1", "1 2"])
def test_nonsense_is_refused(text: str) -> None:
    """Anything that is no list of pCPUs raises ValueError."""
    with pytest.raises(ValueError, match="pCPU"):
        CpuSet.parse(text)


def test_a_map_is_never_cut() -> None:
    """A pCPU beyond the map is refused, since the binding would drop it without a word."""
    with pytest.raises(ValueError, match="do not fit"):
        to_map(CpuSet.of([70]), 64)


@pytest.mark.parametrize(
    ("caches", "nodes", "isolated", "granularity"),
    [
        ("0-3 4-7", "0-7", "", "cache"),
        ("0-3 4-6", "0-7", "", "cpu"),
        ("0-3 4-7 8-9", "0-9", "", "cache"),
        ("0-1 2-3 4-5 6-7", "0-3 4-7", "", "node"),
        ("", "0-3 4-7", "", "node"),
        ("0-7", "0-7", "", "cpu"),
        ("", "", "", "cpu"),
        ("0-3 4-7", "0-3 4-7", "3", "cpu"),
    ],
)
def test_what_auto_comes_to(caches: str, nodes: str, isolated: str, granularity: str) -> None:
    """Two caches of four pCPUs that are not isolated, else two nodes of as many, else pCPUs."""

    def number(groups: str, cpu: int) -> int | None:
        parts = map(CpuSet.parse, groups.split())
        return next((index for index, part in enumerate(parts) if cpu in part), None)

    cpus = [
        Cpu(cpu, number(nodes, cpu), cache=number(caches, cpu), isolated=str(cpu) == isolated)
        for cpu in range(10)
    ]
    assert resolved(cpus, Granularity.AUTO) == granularity
    assert sets(cpus, Granularity.AUTO) == sets(cpus, Granularity(granularity))
    assert resolved(cpus, Granularity.CORE) is Granularity.CORE


@pytest.mark.parametrize("granularity", Granularity)
def test_an_isolated_pcpu_is_a_set_by_itself(granularity: Granularity) -> None:
    """The kernel balances nothing there; the other thread of its core is alone, too, then."""
    cpus = [Cpu(cpu, 0, cpu // 2, cpu // 8, isolated=cpu == 5) for cpu in range(16)]
    found = [str(each) for each in sets(cpus, granularity) if 4 in each or 5 in each]
    assert found[-1] == "5"
    assert found[0] == {"core": "4", "cpu": "4", "node": "0-4,6-15"}.get(granularity, "0-4,6-7")
