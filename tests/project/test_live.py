"""The live part of the benchmark without guests: its scenarios, its verdicts, its tables."""

import dataclasses
import itertools
import os
import subprocess
from pathlib import Path

import pytest
from live import accuracy, cost, cycle_cost
from live.blocks import Block, Got, Timing
from live.scenarios import IDLE, Claim, Scenario, Shape, scenarios
from live.tables import live_tables
from live.verdict import Answer, Measure, judge
from soak.real import BY_HAND, PINNED
from soak.verdict import Size

from vcpusched.act.ledger import Changed
from vcpusched.model import CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.report.messages import changed_entry

TWO = CpuSet.parse("0-1")
EIGHT = CpuSet.parse("0-7")

RATES = (90.0, 100.0, 110.0, 100.0)
"""Work of a guest in each block without the daemon."""


@pytest.mark.parametrize("cpus", [TWO, CpuSet.parse("1,3,5"), EIGHT])
def test_scenarios_on_any_pcpus(cpus: CpuSet) -> None:
    """Guests stay on these pCPUs, have names of their own, and leave room for what runs them."""
    for scenario in scenarios(cpus).values():
        names = [guest.name for guest in scenario.guests]
        assert len(set(names)) == len(names)
        for guest in scenario.guests:
            assert guest.start.is_within(cpus)
            assert len(guest.start) > 0
        if scenario.in_turns:
            pair = [scenario.turn(4), scenario.turn(5)]
            assert [sorted(turn) for turn in pair] == [sorted(names)] * 2
            for guest in scenario.guests:
                assert {turn[guest.name] for turn in pair} == {IDLE, *guest.shares}
            assert all(sum(turn.values()) < 0.95 * len(cpus) for turn in pair)
        else:
            wanted = sum(guest.wants for guest in scenario.guests)
            assert wanted < 0.8 * len(cpus)


def test_bad_starts_overload_a_pcpu() -> None:
    """On 2 and 8 pCPUs: one pCPU of each group is asked for more than it has."""
    for cpus, groups in ((TWO, 1), (EIGHT, 4)):
        for name, crowded in (("bad", range(0, 2 * groups, 2)), ("half", [0])):
            asked = dict.fromkeys(cpus, 0.0)
            for guest in scenarios(cpus)[name].guests:
                if len(guest.start) == 1:
                    asked[next(iter(guest.start))] += guest.wants
            assert all(asked[cpu] > 1 for cpu in crowded), name


@pytest.mark.parametrize(("cpus", "groups"), [("0", None), ("0-1", 2), ("0-7", 5)])
def test_too_few_pcpus_are_refused(cpus: str, groups: int | None) -> None:
    """Each group has two pCPUs."""
    with pytest.raises(ValueError, match="groups"):
        scenarios(CpuSet.parse(cpus), groups)


def scenario(claim: Claim) -> Scenario:
    """Return a host with a crowded and a lone guest."""
    shapes = (Shape("crowded", (0.5,), CpuSet.of([0])), Shape("lone", (0.5,), CpuSet.of([1])))
    return Scenario("Made up", claim, TWO, shapes)


def blocks(crowded: float, lone: float = 1.0, **did: object) -> list[Block]:
    """Return blocks in which the daemon changes the work of two guests by these factors.

    From pair to pair the ratios differ by a percent or two, as they do on a quiet machine.
    """
    found = []
    for pair, rate in enumerate(RATES):
        noise = 1 + 0.01 * (pair - 1.5)
        for daemon in (False, True):
            factors = {"crowded": crowded * noise, "lone": lone / noise}
            guests = {
                name: Got(
                    work_per_s=(rate if name == "crowded" else 2 * rate)
                    * (factor if daemon else 1),
                    run=0.3,
                    wait=0.1 if daemon else 0.4,
                    cpus=("0",),
                )
                for name, factor in factors.items()
            }
            block = Block(pair, daemon, guests, beside=0.5 if daemon else 0.25)
            found.append(dataclasses.replace(block, **did) if daemon else block)  # type: ignore[arg-type]
    return found


def test_a_gain_is_seen_through_the_noise() -> None:
    """The crowded guest gets half as much again, the lone one loses nothing that counts."""
    found = judge(scenario(Claim.GAINS), blocks(1.5, pins=1))
    assert found.answer is Answer.HOLDS
    assert found.worst_off.value == pytest.approx(1.5, rel=0.01)
    assert found.total.value == pytest.approx(3.5 / 3, rel=0.01)
    assert found.wait == pytest.approx((0.4, 0.1))
    assert found.beside == (0.25, 0.5)
    assert found.pins == (1, 1, 1, 1)


def test_time_counts_where_it_is_asked_for() -> None:
    """Emulated pCPUs: half the work in twice the time is no loss, and by work it is one."""
    found = [
        dataclasses.replace(
            one,
            guests={
                name: dataclasses.replace(got, run=got.run * (2 if one.daemon else 1))
                for name, got in one.guests.items()
            },
        )
        for one in blocks(0.5, 0.5)
    ]
    kind = scenario(Claim.GAINS)
    assert judge(kind, found).answer is Answer.FAILS
    by_time = judge(kind, found, Measure.TIME)
    assert by_time.answer is Answer.HOLDS
    assert by_time.worst_off.value == by_time.total.value == pytest.approx(2.0)


def test_a_loss_beyond_the_noise_is_reported() -> None:
    """However much another gains."""
    found = judge(scenario(Claim.GAINS), blocks(1.5, 0.9))
    assert found.answer is Answer.FAILS
    assert any(reason.startswith("lone loses 10.0% of its work") for reason in found.reasons)


def test_nothing_gained_is_no_gain() -> None:
    """The claim is then not proven, and says so."""
    found = judge(scenario(Claim.GAINS), blocks(1.0))
    assert found.answer is Answer.UNDECIDED
    assert found.reasons == ("whether the worst-off guest gains is lost in the noise",)


def test_noise_that_hides_a_loss_is_reported() -> None:
    """Work that doubles and halves from pair to pair proves nothing."""
    wild = [
        dataclasses.replace(
            one,
            guests={
                name: dataclasses.replace(got, work_per_s=got.work_per_s * 2 ** (one.pair % 2))
                for name, got in one.guests.items()
            },
        )
        if one.daemon
        else one
        for one in blocks(1.0)
    ]
    found = judge(scenario(Claim.ALIKE), wild)
    assert found.answer is Answer.UNDECIDED
    assert found.reasons == ("the noise could hide 10% and more for crowded, lone",)


def test_alike_means_no_pin_and_no_gain_either() -> None:
    """No difference, one pin, a gain, a pin that failed."""
    kind = scenario(Claim.ALIKE)
    assert judge(kind, blocks(1.0)).answer is Answer.HOLDS
    assert judge(kind, blocks(1.0, pins=1)).answer is Answer.FAILS
    assert judge(kind, blocks(1.2)).answer is Answer.FAILS
    assert judge(kind, blocks(1.0, pins_failing=1)).answer is Answer.FAILS


def test_order_of_blocks_does_not_count() -> None:
    """Blocks are known by their pair, whichever came first."""
    kind, measured = scenario(Claim.GAINS), blocks(1.5)
    assert judge(kind, measured) == judge(kind, measured[::-1])


def test_tables_of_all_scenarios() -> None:
    """Each scenario has its table, and the last one has them all."""
    kind = scenario(Claim.GAINS)
    verdicts = {name: judge(kind, blocks(1.5)) for name in ("bad", "half")}
    tables = live_tables(dict.fromkeys(verdicts, kind), verdicts, Timing(4, 1, 1))
    assert [len(table.rows) for table in tables] == [4, 4, 2]
    text = "\n".join(table.markdown() for table in tables)
    assert "Verdict: holds." in text
    assert all(
        len(row) == len(table.columns)
        for table, row in itertools.product(tables[:1], tables[0].rows)
    )


def test_the_table_of_what_is_reported() -> None:
    """Differences are of the blocks, in points: 1 and 3 are 2 +- 12.706, and half a point always.

    Only a Linux guest has a view of its own.
    """
    readings = [
        accuracy.Reading("busy", 0.51, 0.50, 0.0, None),
        accuracy.Reading("linux", 0.90, 0.895, 0.09, 0.985),
        accuracy.Reading("busy", 0.53, 0.50, 0.0, None),
        accuracy.Reading("linux", 0.80, 0.795, 0.19, 0.985),
    ]
    busy, linux = accuracy.table(readings, Timing(2, 1, 1)).rows
    assert busy == ("busy", "52.0", "50.0", "+2.00 (-10.71 to +14.71)", "0.0", "-", "-")
    assert linux[3:6] == ("+0.50 (+0.50 to +0.50)", "14.0", "98.5")
    assert linux[6] == "+0.50 (+0.50 to +0.50)"


def test_the_table_of_costs() -> None:
    """Means of the runs, and with libvirtd also the limits; the C program is what others beat."""
    costs = [cost.Cost("now", 10, 2, 9, ours_ms, 8.0, 50.0, 0.5) for ours_ms in (4.0, 4.5, 5.0)]
    costs += [cost.Cost(cost.READER, 10, 2, 9, ours_ms, 8.0) for ours_ms in (0.0, 0.5, 1.0)]
    now, reader = cost.table(costs, Timing(3, 1, 1)).rows
    assert now[:5] == ("10 x 2", "now", "4.50", "8.00", "12.50 (11.26-13.74)")
    assert now[5].startswith("1.47 (1.")
    assert now[6:] == ("50.00", "0.50")
    assert reader[1:4] == (cost.READER, "0.50", "8.00")
    assert reader[5:] == ("1.00 (1.00-1.00)", "-", "-")


def test_cycles_in_memory_are_measured() -> None:
    """The service's own cycle runs to where nothing is left to do, and leaves figures above 0."""
    (found,) = cycle_cost.run([cycle_cost.Shape(4, 2, 4)])
    assert min(found.threads_ms, found.cycle_ms, found.state_ms, found.memory_mib) > 0
    (row,) = cycle_cost.table([found]).rows
    assert row[:2] == ("4 x 2 on 4", "bound")


def test_the_soak_understands_the_log() -> None:
    """What it searches for is what the service says of pins, its own and others'."""
    vcpu = VcpuId(DomainUuid("u"), 3, 2)
    for to in (CpuSet.parse("1"), CpuSet.parse("0-1,4")):
        move = Move(vcpu, "guest12", CpuSet.parse("0"), to, 530_000, "is on the way to pCPU 9: so")
        found = PINNED.search(f"12:00:00 {changed_entry(Changed(move, 7)).message}")
        assert found is not None
        assert found.groups() == ("2", "guest12", str(to))
    for cause in (Cause.PINNED, Cause.POOLED):
        changed = dataclasses.replace(move, cause=cause)
        found = BY_HAND.search(changed_entry(Changed(changed)).message)
        assert found is not None
        assert found.groups() == ("2", "guest12")


def test_the_soak_finds_files_that_stay_open() -> None:
    """The counters of a thread are meant to, once and while it runs."""
    before = Size.of(os.getpid(), "the start").files
    with subprocess.Popen(["sleep", "20"]) as process:
        path = Path(f"/proc/{process.pid}/task/{process.pid}/schedstat")
        with path.open("rb"):
            assert Size.of(os.getpid(), "one").files == before
            with path.open("rb"):
                assert Size.of(os.getpid(), "two").files == before + 1
            process.kill()
            process.wait()
            assert Size.of(os.getpid(), "its end").files == before + 1
