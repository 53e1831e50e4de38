"""The planner's scenarios on real guests: two pCPUs, one plan, then stillness.

Those in which guests want more than there is are the simulator's (`tests/simulate`), and
`contrib/benchmark/run live` measures what guests get.
"""

import pytest
from lab import Lab
from service import running

QUICK = {"VCPUSCHED_HALF_LIFE": "2"}
"""A host under test is watched for seconds, not for a day."""

STILL_CYCLES = 10


def test_equal_guests_already_spread(lab: Lab) -> None:
    """[6 6] [6 6]: no pin, however long one looks."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=index % 2)
    with running(lab, "0.5", **QUICK) as service:
        service.wait_cycles(STILL_CYCLES)
        assert service.pins == 0
        assert service.is_balanced()


def test_only_an_exchange_helps(lab: Lab) -> None:
    """[12 12] [5 5]: 24 and 10; a single move gives 12 and 22; an exchange 17 and 17."""
    for name, share, cpu in (("a", 0.12, 0), ("b", 0.12, 0), ("c", 0.05, 1), ("d", 0.05, 1)):
        lab.add_guest(name, [share], pin=cpu)
    with running(lab, "0.5", **QUICK) as service:
        service.wait("the exchange", lambda: service.pins > 0)
        service.wait_cycles(STILL_CYCLES)
        assert service.pins == 2
        assert len(service.lines(" done: 2 pins, ")) == 1
        assert len(service.lines("in exchange for vCPU 0 of ")) == 2
    assert {lab.guests[name].affinity(0) == {0} for name in "ab"} == {True, False}
    assert {lab.guests[name].affinity(0) == {0} for name in "cd"} == {True, False}


def test_light_guests_turn_heavy(lab: Lab) -> None:
    """[1 1] [], then [12 12] []: one re-balance, then stillness."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.01], pin=0, later=[0.12], step_after_s=6)
    with running(lab, "0.5", **QUICK) as service:
        service.wait_cycles(4)
        assert service.pins == 0
        service.wait("the re-balance", lambda: service.pins > 0)
        service.wait_cycles(STILL_CYCLES)
        assert len(service.lines(" done: ")) == service.pins == 1
        assert service.is_balanced()


@pytest.mark.parametrize("floating", ["kernel", "pin"])
def test_floating_guests(lab: Lab, floating: str) -> None:
    """12 12 4 4 on both pCPUs: left to the kernel, or each bound once, never both heavy on one.

    The kernel may have a floater anywhere at any sample, so when it is bound is not foretold.
    """
    for index in range(4):
        lab.add_guest(f"g{index}", [[0.12, 0.04][index % 2]])
    with running(lab, "0.5", VCPUSCHED_FLOATING=floating, **QUICK) as service:
        service.wait_cycles(20)
        made = [len(service.lines(f"pinned vCPU 0 of g{index} ")) for index in range(4)]
        assert sum(made) == service.pins
        assert max(made) <= (1 if floating == "pin" else 0)
        affinities = [lab.guests[name].affinity(0) for name in ("g0", "g2")]
        bound = [affinity for affinity in affinities if len(affinity) == 1]
        assert len(set(bound)) == len(bound)
