"""Situations from the field, each as it is and in 20 copies: loads off by 2 points, other names."""

from pathlib import Path

import pytest
from planned import carried_out, copies

from vcpusched.model import CpuSet, Granularity, Host
from vcpusched.plan.planner import Plan, Policy, plan
from vcpusched.report import snapshot

FIELD = Path(__file__).parents[1] / "data/field"
FAIR = Policy(fair_shares=True)


def hosts(name: str) -> list[Host]:
    """Return the host of a file, and its copies."""
    return copies(snapshot.parse((FIELD / f"{name}.json").read_text()))


def moved(found: Plan) -> dict[str, str]:
    """Return which guests go where."""
    return {move.domain: str(move.to_cpus) for move in found.moves}


@pytest.mark.parametrize("drawn", hosts("lone-beside-host-load"))
@pytest.mark.parametrize("pin_to", [Granularity.CPU, Granularity.AUTO])
def test_a_lone_vcpu_leaves_what_the_host_itself_fills(drawn: Host, pin_to: Granularity) -> None:
    """90 % alone beside 90 % of the host's own load, three pCPUs idle: one pin, and rest."""
    policy = Policy(pin_to=pin_to, fair_shares=True)
    found = plan(drawn, policy)
    assert list(moved(found)) == ["a"]
    assert not found.moves[0].to_cpus & CpuSet.of([2])
    assert not plan(carried_out(drawn, found), policy).moves


@pytest.mark.parametrize("drawn", hosts("giant"))
def test_the_giant_leaves_not_its_company(drawn: Host) -> None:
    """{100 10 10} {}: one pin does what two would."""
    assert moved(plan(drawn, FAIR)) == {"a": "1"}


@pytest.mark.parametrize("drawn", hosts("hyper-threads"))
def test_hyper_threads_are_used(drawn: Host) -> None:
    """48 vCPUs on 16 threads of 8 cores: the worst served gains, so moves are made."""
    found = plan(drawn, FAIR)
    assert len(found.moves) > 3
    assert found.gap_after_ppm < found.gap_before_ppm


@pytest.mark.parametrize("drawn", hosts("guest-of-four"))
def test_a_guest_of_four_stays_on_its_cache(drawn: Host) -> None:
    """Two must leave the cache: the guests of one vCPU."""
    found = moved(plan(drawn, FAIR))
    assert len(found) == 2
    assert "game" not in found


@pytest.mark.parametrize("drawn", hosts("two-sockets"))
def test_the_same_socket_is_nearer(drawn: Host) -> None:
    """One leaves, for the idle pCPU on its own socket."""
    (move,) = plan(drawn, FAIR).moves
    site = {cpu.id: cpu.cpu for cpu in drawn.cpus}
    ((here,), (there,)) = move.from_cpus, move.to_cpus
    assert site[here].socket == site[there].socket
    assert site[here].node != site[there].node


@pytest.mark.parametrize("drawn", [*hosts("weights"), *hosts("weights-and-others")])
def test_a_light_guest_is_not_put_beside_a_heavy_one(drawn: Host) -> None:
    """It would fall from 33 % to 9 %; twenty hogs on a pCPU of their own excuse nothing."""
    found = plan(drawn, FAIR)
    assert not found.moves
    assert "would cut vCPU 0 of " in found.refused
    assert plan(drawn, Policy()).moves


@pytest.mark.parametrize("drawn", hosts("batch"))
def test_a_batch_guest_has_no_veto(drawn: Host) -> None:
    """{hogs of 1024, four of them} {one more, and one of 2}: one pin, whatever the batch loses."""
    found = plan(drawn, FAIR)
    assert len(found.moves) == 1
    assert str(found.moves[0].to_cpus) == "1"
