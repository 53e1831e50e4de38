"""Sets of pCPUs, up to sizes and gaps that real machines have, and what vCPUs are pinned to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcpusched.host.libvirt_xml import from_map, to_map
from vcpusched.model import Cpu, CpuSet, Granularity, sets

cpu_sets = st.frozensets(st.integers(0, 600)).map(CpuSet.of)


@given(cpu_sets)
def test_text_round_trip(cpus: CpuSet) -> None:
    """Whatever is written in cpulist syntax is read back as the same set."""
    assert CpuSet.parse(str(cpus)) == cpus


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
    ("caches", "nodes", "expected"),
    [
        ([4, 4], [8], Granularity.CACHE),
        ([3, 5, 4], [6, 6], Granularity.CACHE),
        ([3, 5], [4, 4], Granularity.NODE),  # one cache is too small
        ([8], [8], Granularity.CPU),
        ([2, 2, 2, 2], [3, 5], Granularity.CPU),
        ([], [4, 4], Granularity.NODE),
        ([], [], Granularity.CPU),
    ],
)
def test_what_auto_stands_for(caches: list[int], nodes: list[int], expected: Granularity) -> None:
    """By how many pCPUs each cache and node has; none where the machine does not tell."""
    of_cache = dict(enumerate(cache for cache, size in enumerate(caches) for _ in range(size)))
    of_node = dict(enumerate(node for node, size in enumerate(nodes) for _ in range(size)))
    count = max(len(of_cache), len(of_node), 8)
    cpus = [Cpu(cpu, node=of_node.get(cpu), cache=of_cache.get(cpu)) for cpu in range(count)]
    assert Granularity.AUTO.on(cpus) is expected
    assert sets(cpus, Granularity.AUTO) == sets(cpus, expected)
    assert {one.on(cpus) for one in Granularity} == set(Granularity) - {Granularity.AUTO}
