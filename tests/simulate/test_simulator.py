"""The production scheduler on a simulated host, over many periods; and the host itself."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest

from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.host.hypervisor import (
    BusyError,
    CpuRefusedError,
    HypervisorError,
    VanishedError,
)
from vcpusched.model import (
    PPM,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    DomainUuid,
    Granularity,
    Host,
    Topology,
    VcpuId,
)
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.plan.planner import Plan, Policy, plan
from vcpusched.report import simulation
from vcpusched.settings import Settings
from vcpusched.simulate.simulator import PERIOD_NS, Place, SimulatedHost, simulate
from vcpusched.simulate.workload import Guest, PinAnswer, Workload

PERIODS = 60
DEFAULTS = Settings.model_validate({}).rules()


def drawn(*cpus: Sequence[float], periods: int = PERIODS) -> Workload:
    """Draw a host: for each pCPU the percent of each guest of one vCPU that starts there."""
    guests = [
        guest(f"g{cpu}{letter}", [load] * periods, pin=str(cpu))
        for cpu, loads in enumerate(cpus)
        for letter, load in zip("abcdefghijklmnop", loads, strict=False)
    ]
    return Workload("drawn", len(cpus), periods, tuple(guests))


def guest(name: str, percents: Sequence[float], pin: str | None = None) -> Guest:
    """Return a guest of one vCPU with these loads."""
    loads = tuple(round(percent * PPM_PER_POINT) for percent in percents)
    return Guest(name, (loads,), pin=CpuSet.parse(pin) if pin is not None else None)


def run(workload: Workload, place: Place = Place.RANDOM) -> simulation.Result:
    """Run a workload under the scheduler."""
    return simulate(workload, Scheduler(), place=place)


def last_gap(result: simulation.Result) -> float:
    """Return the mean gap of the last ten periods, in points."""
    return sum(period.gap_ppm for period in result.periods[-10:]) / 10 / PPM_PER_POINT


def test_equal_guests_already_spread() -> None:
    """{50} {50} {50} {50}: no pin, ever."""
    result = run(drawn([50], [50], [50], [50]))
    assert (len(result.pins), last_gap(result), result.unmet_ppm) == (0, 0, 0)


def test_all_on_one() -> None:
    """{20 20 20 20} {} {} {}: three must go, each once, in one plan; 80 % runs there till then."""
    result = run(drawn([20, 20, 20, 20], [], [], []))
    assert (len(result.pins), result.plans) == (3, 1)
    assert result.periods[0].gap_ppm == 800_000
    assert last_gap(result) == 0


def test_heavy_and_light_on_the_first_and_the_last() -> None:
    """{40 10 40 10} {} {} {40 10 40 10}: each pCPU gets 50, so one of each kind leaves both.

    Four pins in one plan; a host of mean 50 with gap 0 can be had with no fewer, since two vCPUs
    must go to each of the empty ones.
    """
    result = run(drawn([40, 10, 40, 10], [], [], [40, 10, 40, 10]))
    assert (len(result.pins), result.plans) == (4, 1)
    assert last_gap(result) < 10


def test_five_equal_vcpus_on_four() -> None:
    """{50 50} {50} {50} {50}: one pCPU has two whatever one does; at most one plan, then still."""
    result = run(drawn([50, 50], [50], [50], [50]))
    assert result.plans <= 1
    assert all(pin.period < 10 for pin in result.pins)


@pytest.mark.parametrize("load", [50, 60, 75, 90])
def test_five_equal_vcpus_of_which_two_fill_a_cpu(load: int) -> None:
    """Two on one pCPU cannot finish and wait, so they seem larger than their like; yet rest.

    What a vCPU ran while alone is remembered. Only of the first two there is no such memory: from
    {60? 60?} {60} {60} {60}, where the estimate of both is 75, one of them and the vCPU in its new
    place move once, {60} {60} {60 60} {60}, and by then everybody is known. With the default
    settings, for ten minutes; without the memory 12 pins.
    """
    crowded = drawn([load, load], [load], [load], [load], periods=200)
    result = simulate(crowded, Scheduler(), DEFAULTS)
    assert len(result.pins) == len({pin.domain for pin in result.pins}) <= 2
    periods = [pin.period for pin in result.pins]
    assert not periods or max(periods) - min(periods) <= 3


def run_with_a_pin(host: SimulatedHost, name: str) -> list[int]:
    """Run 200 periods, in the 51st of which a guest is put to pCPU 3; gives what each left undone.

    It is put there by a pin, the first one of the host.
    """
    scheduler, unmet_ns = Scheduler(), list[int]()
    for period in range(200):
        unmet_ns.append(host.pass_period().unmet_ns)
        if period == 50:
            (moved,) = [domain for domain in host.sample().domains if domain.name == name]
            host.pin(VcpuId(moved.uuid, moved.domain_id, 0), CpuSet.of([3]))
        scheduler.cycle(host, DEFAULTS)
        host.period += 1
    return unmet_ns


def test_a_memory_that_is_wrong_is_given_up() -> None:
    """{50} {50} {50} {50}, then one is put to another and a new one starts: {50} {50} {50} {50 50}.

    All know 50 of themselves, so they rest; from period 100 on the two that share want 100 each.
    They run 50 as before, but do not sleep any more. {100} {100} {50} {50 50} serves nearly all.
    """
    starts = dataclasses.replace(guest("starts", [50] * 150, "0"), start=50)
    shares = [guest(f"s{cpu}", [50] * 100 + [100] * 100, str(cpu)) for cpu in (0, 3)]
    others = [guest(f"g{cpu}", [50] * 200, str(cpu)) for cpu in (1, 2)]
    host = SimulatedHost(Workload("", 4, 200, (starts, *shares, *others)))
    unmet_ns = run_with_a_pin(host, "s0")
    assert sum(unmet_ns[60:100]) / 40 / PERIOD_NS < 0.1 < unmet_ns[102] / PERIOD_NS
    made = [pin.period for pin in host.pins]
    assert made[0] == 50
    assert 2 <= len(made) <= 3, made
    assert all(108 <= period <= 130 for period in made[1:])
    assert sum(unmet_ns[130:]) / 70 / PERIOD_NS < 0.1


def test_a_crowd_on_a_weak_pcpu_is_explained_too() -> None:
    """Weak pCPUs do 60 %, and each of their vCPUs wants 45: two share one from period 50 on.

    What both ran while alone fills it, so that neither seems to want more, and none is moved.
    """
    cpus = (Cpu(cpu, 0, cpu, 0, PPM if cpu == 4 else 600_000) for cpu in range(5))
    starts = dataclasses.replace(guest("starts", [45] * 150, "0"), start=50)
    others = [guest(f"g{cpu}", [45] * 200, str(cpu)) for cpu in range(4)]
    guests = (starts, *others, guest("hog", [100] * 200, "4"))
    host = SimulatedHost(Workload("", 5, 200, guests, topology=Topology(tuple(cpus))))
    run_with_a_pin(host, "g0")
    assert len(host.pins) == 1


def test_eight_that_want_all_of_four() -> None:
    """{100 x 5} {100} {100} {100}: two each, so three leave the first; of usage all read 100."""
    crowded = drawn([100] * 5, [100], [100], [100])
    result = run(crowded)
    assert sorted(str(pin.to_cpus) for pin in result.pins) == ["1", "2", "3"]
    assert {str(pin.from_cpus) for pin in result.pins} == {"0"}


def test_five_equal_vcpus_crowded() -> None:
    """{30 30 30 30 30} {} {} {}: three leave, one each, and two stay together; then still."""
    result = run(drawn([30, 30, 30, 30, 30], [], [], []))
    assert (len(result.pins), result.plans) == (3, 1)
    assert last_gap(result) == pytest.approx(30, abs=1)


def test_three_alone_on_four() -> None:
    """{80 60 40} {} {} {}: two leave in the first plan or two, and none moves once alone."""
    result = run(drawn([80, 60, 40], [], [], []))
    assert len(result.pins) == 2
    assert all(pin.period < 10 for pin in result.pins)
    assert len({pin.to_cpus for pin in result.pins}) == 2
    assert result.periods[-1].unmet_ns == 0


def test_unpinned_heavy_and_light() -> None:
    """Four of 60 and four of 20 that float on four pCPUs: 320 in all, so 80 each is fair.

    The kernel has them elsewhere in every period, so they are pinned in several plans, one or a
    few at a time; each at most once, and by then {60 20} on every pCPU. Then still.
    """
    guests = tuple(
        guest(f"g{number}", [60 if number % 2 else 20] * 2 * PERIODS) for number in range(8)
    )
    result = run(Workload("", 4, 2 * PERIODS, guests), Place.FLOATING)
    assert len({pin.domain for pin in result.pins}) == len(result.pins) <= 8
    assert all(pin.period < PERIODS for pin in result.pins)
    assert last_gap(result) < 10
    assert result.unmet_ppm < 10_000


def test_a_light_guest_turns_heavy() -> None:
    """{30 5} {30 5}, and the first 5 becomes 60: it or the 30 beside it must go, once.

    Then {90 in two} {35}: gap 55. Moving the 30: {60} {65}, gap 5: one pin, one plan.
    """
    half = PERIODS // 2
    before = drawn([30], [30, 5])
    turning = guest("turning", [5] * half + [60] * half, "0")
    result = run(dataclasses.replace(before, guests=(*before.guests, turning)))
    assert (len(result.pins), result.plans) == (1, 1)
    assert result.pins[0].domain == "g0a"
    assert half <= result.pins[0].period < half + 10
    assert last_gap(result) < 10


def test_noise_moves_nothing() -> None:
    """{35 20} {30 25} {40 15} {30 25} with 5 % noise each, for 1,000 periods: no pin."""
    quiet = drawn([35, 20], [30, 25], [40, 15], [30, 25], periods=1000)
    guests = []
    for number, one in enumerate(quiet.guests):
        loads = [
            load + load * ((period * (7 + number) * 7919 + number) % 1001 - 500) // 10_000
            for period, load in enumerate(one.loads_ppm[0])
        ]
        guests.append(dataclasses.replace(one, loads_ppm=(tuple(loads),)))
    result = run(dataclasses.replace(quiet, guests=tuple(guests)))
    assert result.pins == ()
    assert 0 < last_gap(result) < 10


def test_what_was_wanted_was_run_or_unmet() -> None:
    """{90 90} {20} for 60 periods of 3 s: of 180 % a pCPU can run 100 and 80 go unmet."""
    result = simulate(drawn([90, 90], [20]), None)
    for period in result.periods:
        assert period.demanded_ns == period.run_ns + period.unmet_ns == PERIOD_NS * 2
        assert period.run_ns <= PERIOD_NS * 6 // 5
        assert period.gap_ppm == 1_600_000
    assert sum(vcpu.demanded_ns for vcpu in result.vcpus) == 2 * PERIOD_NS * PERIODS
    assert result.unmet_ppm == pytest.approx(400_000, abs=10_000)
    assert result.vcpus[2].waiting_ppm == 0
    assert result.worst is not None
    assert result.worst.domain in {"g0a", "g0b"}
    assert result.worst.waiting_ppm == pytest.approx(500_000, abs=50_000)


def test_shares_decide_who_waits() -> None:
    """Two that always want, with shares of 2048 and 1024, get 2/3 and 1/3."""
    workload = drawn([100, 100])
    heavy = dataclasses.replace(workload.guests[0], shares=2048)
    result = simulate(dataclasses.replace(workload, guests=(heavy, workload.guests[1])), None)
    assert [vcpu.run_ns // PERIODS for vcpu in result.vcpus] == [2_000_000_000, 1_000_000_000]


def test_all_floating_is_the_kernel_alone() -> None:
    """{70 70} {} pinned lacks 40; floating, each has a pCPU and waits for nothing."""
    pinned = simulate(drawn([70, 70], []), None)
    free = Workload("", 2, PERIODS, tuple(guest(name, [70] * PERIODS) for name in "ab"))
    floating = simulate(free, None, place=Place.FLOATING)
    assert pinned.unmet_ppm > 250_000
    run_ns = sum(vcpu.run_ns for vcpu in pinned.vcpus)
    wait_ns = sum(vcpu.wait_ns for vcpu in pinned.vcpus)
    assert pinned.waiting_ppm == wait_ns * 1_000_000 // (run_ns + wait_ns)
    assert pinned.wait_ppm == wait_ns * 1_000_000 // (2 * PERIOD_NS * PERIODS * 7 // 10)
    assert (floating.unmet_ppm, floating.wait_ppm) == (0, 0)


def test_cpu_time_is_read_in_ticks() -> None:
    """33.3333% of 3 s is 999.999 ms: read as 990, after two periods as 1,990."""
    host = SimulatedHost(Workload("", 1, 5, (guest("a", [33.3333] * 5),)))
    for read_ms in (990, 1990):
        host.pass_period()
        host.period += 1
        (domain,) = host.sample().domains
        assert domain.vcpus[0].run_ns == read_ms * 1_000_000
    assert (domain.at_ns, domain.name) == (2 * PERIOD_NS, "a")
    assert domain.vcpus[0].on == 0


def test_guests_come_go_and_start_anew() -> None:
    """A guest is seen for its life; a restart has another id, counters from 0, its first place."""
    workload = Workload(
        "",
        3,
        6,
        (
            dataclasses.replace(guest("stays", [50] * 6, "0"), restarts=(3,)),
            dataclasses.replace(guest("late", [50] * 2, "2"), start=2),
        ),
    )
    host = SimulatedHost(workload)
    seen = []
    for _ in range(6):
        host.pass_period()
        domains = host.sample().domains
        seen.append({domain.name: domain.vcpus[0].run_ns // 10**6 for domain in domains})
        if host.period == 1:
            old = VcpuId(domains[0].uuid, domains[0].domain_id, 0)
            host.pin(old, CpuSet.of([1]))
            assert str(host.sample().domains[0].vcpus[0].affinity) == "1"
        host.period += 1
    assert seen == [
        {"stays": 1500},
        {"stays": 3000},
        {"stays": 4500, "late": 1500},
        {"stays": 1500, "late": 3000},
        {"stays": 3000},
        {"stays": 4500},
    ]
    (domain,) = host.sample().domains
    assert domain.uuid == old.uuid
    assert domain.domain_id > old.domain_id
    assert str(domain.vcpus[0].affinity) == "0"
    with pytest.raises(VanishedError):
        host.pin(old, CpuSet.of([1]))


def test_pins_that_fail() -> None:
    """Each guest answers as described, and what has ended has vanished."""
    workload = Workload(
        "",
        2,
        3,
        (
            dataclasses.replace(guest("busy", [50] * 3, "0"), refuses=PinAnswer.BUSY),
            dataclasses.replace(guest("stubborn", [50] * 3, "0"), refuses=PinAnswer.ERROR),
            guest("short", [50], "0"),
            guest("plain", [50] * 3, "0"),
        ),
    )
    host = SimulatedHost(workload)
    host.pass_period()
    ids = [VcpuId(domain.uuid, domain.domain_id, 0) for domain in host.sample().domains]
    host.period += 1
    host.pass_period()
    there = CpuSet.of([1])
    with pytest.raises(BusyError):
        host.pin(ids[0], there)
    with pytest.raises(HypervisorError, match="refused"):
        host.pin(ids[1], there)
    for gone in (ids[2], ids[3]._replace(vcpu=1)):
        with pytest.raises(VanishedError):
            host.pin(gone, there)
    with pytest.raises(VanishedError):
        host.definition(ids[2].uuid)
    with pytest.raises(HypervisorError, match="no pCPUs 2"):
        host.pin(ids[3], CpuSet.of([2]))
    assert (host.pins, host.refused) == ([], 2)
    host.pin(ids[3], there)
    assert [(pin.domain, pin.period) for pin in host.pins] == [("plain", 1)]


def test_the_scheduler_balances_around_a_guest_that_refuses() -> None:
    """{30* 30 30 30} {}: two must go; the one that refuses (*) stays, two others do."""
    workload = drawn([30, 30, 30, 30], [])
    refusing = tuple(
        dataclasses.replace(one, refuses=PinAnswer.ERROR if one.name == "g0a" else None)
        for one in workload.guests
    )
    result = run(dataclasses.replace(workload, guests=refusing))
    assert "g0a" not in {pin.domain for pin in result.pins}
    assert last_gap(result) < 10
    assert result.refused <= 2


def within(cpuset: str, workload: Workload) -> Workload:
    """Have the kernel let all guests use no more than this."""
    bound = CpuSet.parse(cpuset)
    guests = tuple(dataclasses.replace(one, cpuset=bound) for one in workload.guests)
    return dataclasses.replace(workload, guests=guests)


def test_guests_are_balanced_within_their_cpuset() -> None:
    """{} {} {90 80 70 60} {50 40 30 30} {20 20 10} {} {} {}, of which the first two are no guest's.

    Without knowing that a third of the demand stayed unmet, with 35 pins refused.
    """
    loads: list[list[int]] = [[], [], [90, 80, 70, 60], [50, 40, 30, 30], [20, 20, 10], [], [], []]
    result = simulate(within("2-7", drawn(*loads, periods=100)), Scheduler(), DEFAULTS)
    assert result.refused == 0
    assert all(pin.to_cpus.is_within(CpuSet.parse("2-7")) for pin in result.pins)
    last = result.periods[-70:]
    assert sum(p.unmet_ns for p in last) < sum(p.demanded_ns for p in last) * 0.02


def test_floaters_are_poured_over_their_cpuset() -> None:
    """{} {} {50 50} {}, of which the last two are the guests', and two of 20 that float there.

    That is 100 and 40, so one of 50 leaves, for the only other pCPU that there is for it.
    """
    loads: list[list[int]] = [[], [], [50, 50], []]
    free = tuple(guest(name, [20] * PERIODS) for name in "ab")
    bound = drawn(*loads)
    workload = within("2-3", dataclasses.replace(bound, guests=bound.guests + free))
    result = simulate(workload, Scheduler(), place=Place.FLOATING)
    assert str(result.pins[0].to_cpus) == "3"
    assert result.refused == 0
    host = SimulatedHost(workload, Place.FLOATING)
    host.pass_period()
    floating = [d for d in host.sample().domains if d.name in {"a", "b"}]
    assert {str(d.vcpus[0].affinity) for d in floating} == {"2-3"}


def test_the_kernel_takes_no_pin_outside_a_cpuset() -> None:
    """And cuts one that is partly outside."""
    host = SimulatedHost(within("0-1", drawn([10], [], [])))
    host.pass_period()
    (domain,) = host.sample().domains
    assert str(domain.definition.cpuset) == "0-1"
    vcpu = VcpuId(domain.uuid, domain.domain_id, 0)
    with pytest.raises(CpuRefusedError):
        host.pin(vcpu, CpuSet.of([2]))
    assert host.refused == 1
    host.pin(vcpu, CpuSet.parse("1-2"))
    assert str(host.affinity(vcpu)) == "1"


def test_weights_decide_what_is_fair() -> None:
    """{100 100 100} {100*} with weights of 100 and (*) 1024: none joins the heavy one.

    With 1024 for all, as version 1 has it, one did and fell from 33 % to 9 %.
    """
    workload = drawn([100, 100, 100], [100])
    weights = (100, 100, 100, 1024)
    guests = tuple(
        dataclasses.replace(one, shares=weight)
        for one, weight in zip(workload.guests, weights, strict=True)
    )
    result = simulate(dataclasses.replace(workload, guests=guests), Scheduler(), DEFAULTS)
    assert result.pins == ()
    assert min(vcpu.run_ns for vcpu in result.vcpus) > PERIODS * PERIOD_NS * 0.33


def test_a_pin_is_counted_as_back() -> None:
    """A vCPU that returns within five periods to where it was; after the sixth it is no news."""
    workload = drawn([10], [10], periods=20)
    host = SimulatedHost(workload)
    host.pass_period()
    first = host.sample().domains[0]
    identity = VcpuId(first.uuid, first.domain_id, 0)
    for period, to_cpu in ((0, 1), (5, 0), (11, 1), (12, 1)):
        host.period = period
        host.pin(identity, CpuSet.of([to_cpu]))
    assert [pin.back for pin in host.pins] == [False, True, False, False]


def test_another_decision_and_none_at_all() -> None:
    """The planner is an argument; without a scheduler nothing is moved, on the same bursts."""
    asked = []

    def never(host: Host, policy: Policy) -> Plan:
        asked.append(host)
        return dataclasses.replace(plan(host, policy), moves=())

    workload = drawn([40, 40, 40], [])
    never_moved = simulate(workload, Scheduler(decide=never))
    assert len(asked) == PERIODS - 1
    assert never_moved == simulate(workload, None)
    assert run(workload).unmet_ppm < never_moved.unmet_ppm


def test_where_vcpus_start() -> None:
    """As asked for, but within their definitions, and a guest's own pin outranks it."""
    free = [guest(f"g{number}", [10]) for number in range(6)]
    narrow = dataclasses.replace(guest("narrow", [10]), allowed=CpuSet.parse("2-3"))
    pinned = guest("pinned", [10], "1")
    workload = Workload("", 4, 1, (*free, narrow, pinned))

    def starts(place: Place) -> list[str]:
        host = SimulatedHost(workload, place)
        host.pass_period()
        return [str(domain.vcpus[0].affinity) for domain in host.sample().domains]

    assert starts(Place.ONE) == ["0"] * 6 + ["2", "1"]
    assert starts(Place.ROUND_ROBIN) == ["0", "1", "2", "3", "0", "1", "2", "1"]
    assert starts(Place.FLOATING) == ["0-3"] * 6 + ["2-3", "1"]
    random = starts(Place.RANDOM)
    assert set(random[:6]) <= {"0", "1", "2", "3"}
    assert len(set(random[:6])) > 1
    assert (random[6] in {"2", "3"}, random[7]) == (True, "1")
    assert starts(Place.RANDOM) == random


BUSY = """
import json
from vcpusched.report import simulation
from vcpusched.settings import Settings
from vcpusched.simulate.traces import generate
from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.simulate.simulator import Place, simulate
from vcpusched.simulate.workload import scaled
made = scaled(generate(cpu_count=6, vcpu_count=24, periods=12, seed={seed}), 700_000)
for place in (Place.RANDOM, Place.FLOATING):
    print(json.dumps(simulation.as_json(simulate(made, Scheduler(), place=place))))
"""


def test_a_run_can_be_repeated() -> None:
    """Whatever the hash seed, the same seed gives the same bytes; another seed gives others."""

    def printed(hash_seed: str, seed: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", BUSY.format(seed=seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    first = printed("1", 5)
    assert first == printed("2", 5)
    assert first != printed("1", 6)
    assert all(json.loads(line)["demanded_s"] > 0 for line in first.splitlines())


def test_the_json_form() -> None:
    """Gaps in pCPUs, shares of 1, each pin with its period."""
    result = run(drawn([20, 20], [], periods=10))
    form = json.loads(json.dumps(simulation.as_json(result)))
    assert form["gap"][0] == 0.4
    assert len(form["gap"]) == 10
    assert form["demanded_s"] == 12.0
    assert (form["plans"], form["refused"], form["moved_back"]) == (1, 0, 0)
    (pin,) = form["pins"]
    assert (pin["vcpu"], pin["from"], pin["to"]) == (0, "0", "1")
    about = drawn([20, 20], []).about("random", PERIOD_NS)
    assert (about["version"], about["cpus"], about["vcpus"], about["mean_load"]) == (1, 2, 2, 0.2)


def test_nobody_there() -> None:
    """A host whose only guest comes late is idle until then."""
    late = dataclasses.replace(guest("late", [50] * 3, "0"), start=3)
    result = run(Workload("", 1, 6, (late,)))
    assert [period.demanded_ns for period in result.periods[:3]] == [0, 0, 0]
    assert result.vcpus[0].run_ns == 3 * PERIOD_NS // 2
    with pytest.raises(VanishedError):
        SimulatedHost(Workload("", 1, 6, (late,))).definition(DomainUuid("x-0"))


@pytest.mark.parametrize("granularity", [Granularity.CPU, Granularity.CACHE, Granularity.NODE])
def test_strict_memory_is_a_wall(granularity: Granularity) -> None:
    """Nodes {0 1} and {2 3}: {} {} | {40 40 40 40} {}, and to leave a node costs nothing.

    Without walls two leave the second node. With the memory of three strictly on it only the fourth
    does; of the three one goes to pCPU 3, or all may use both.
    """
    topology = Topology(tuple(Cpu(cpu, cpu // 2, cpu, cpu // 2) for cpu in range(4)))
    rules = Rules(
        policy=Policy(pin_to=granularity),
        placement_rules=PlacementRules(granularity=granularity),
    )
    node_0 = CpuSet.parse("0-1")

    def leaving(*guests: Guest) -> set[str]:
        workload = Workload("", 4, PERIODS, guests)
        pins = simulate(workload, Scheduler(), rules, topology=topology).pins
        return {pin.domain for pin in pins if pin.to_cpus.is_within(node_0)}

    free = drawn([], [], [40, 40, 40, 40], []).guests
    assert len(leaving(*free)) == 2
    walled = [dataclasses.replace(one, memory_nodes=frozenset({1})) for one in free[:3]]
    assert leaving(*walled, free[3]) == {free[3].name}
    assert leaving(*walled) == set()


def test_strict_memory_comes_home() -> None:
    """{40* 40*} {} | {} {}: the memory of both is strictly on the second node, where one goes.

    The other is alone then. Without walls one went to the idle pCPU beside it. One that is home
    gains 10 points, so `min_gain` is 0.
    """
    rules = Rules(policy=Policy())
    topology = Topology(tuple(Cpu(cpu, cpu // 2, cpu, cpu // 2) for cpu in range(4)))

    def targets(memory_nodes: frozenset[int]) -> set[str]:
        workload = drawn([40, 40], [], [], [])
        guests = tuple(
            dataclasses.replace(one, memory_nodes=memory_nodes) for one in workload.guests
        )
        workload = dataclasses.replace(workload, guests=guests)
        pins = simulate(workload, Scheduler(), rules, topology=topology).pins
        return {str(pin.to_cpus) for pin in pins}

    assert targets(frozenset()) == {"1"}
    assert targets(frozenset({1})) in ({"2"}, {"3"})


@pytest.mark.parametrize(
    ("granularity", "targets"),
    [(Granularity.CPU, {"2", "3"}), (Granularity.CORE, {"2-3"}), (Granularity.CACHE, {"0-3"})],
)
def test_two_busy_vcpus_on_siblings_are_parted(granularity: Granularity, targets: set[str]) -> None:
    """Cores {0 1} and {2 3}: {100 | 100} { | } -> { | 100} {100 | }, with one pin.

    To the other core, or to all of the cache that has both, where the kernel parts them.

    Together the siblings do 125 % of the work of one, so each vCPU lacks 37.5; with a core each,
    nothing. Their usage is 100 % all along.
    """
    topology = Topology(tuple(Cpu(cpu, 0, cpu // 2, 0) for cpu in range(4)))
    workload = dataclasses.replace(drawn([100], [100], [], []), topology=topology)
    rules = Rules(
        policy=Policy(pin_to=granularity, fair_shares=True),
        placement_rules=PlacementRules(granularity=granularity),
    )
    result = simulate(workload, Scheduler(), rules)
    (pin,) = result.pins
    assert str(pin.to_cpus) in targets
    unmet = [period.unmet_ns / PERIOD_NS for period in result.periods]
    assert unmet == [0.75] * (pin.period + 1) + [0] * (PERIODS - pin.period - 1)
    assert {period.run_ns for period in result.periods} == {2 * PERIOD_NS}
    # Where each has a core already, or nothing is known of cores, all is well.
    apart = dataclasses.replace(drawn([100], [], [100], []), topology=topology)
    assert simulate(apart, Scheduler(), rules).pins == ()
    flat = dataclasses.replace(workload, topology=None)
    assert simulate(flat, Scheduler(), rules, topology=topology).unmet_ppm == 0


def joined(
    policy: str | None,
    seed: int,
    granularity: Granularity = Granularity.CPU,
    weak: Sequence[int] = (),
) -> int:
    """Count the pins by which a vCPU joins another one of its guest on a core.

    Four cores of two threads (0 and 4, and so on), of which the weak ones do 60 %, and six guests
    of two vCPUs that begin apart, whose loads change every 20 periods.
    """
    chance = random.Random(seed)
    topology = Topology(
        tuple(
            Cpu(cpu, 0, cpu % 4, cpu % 4, 600_000 if cpu % 4 in weak else 1_000_000)
            for cpu in range(8)
        )
    )
    loads = [
        tuple(load for _ in range(6) for load in [chance.choice([5, 30, 50]) * PPM_PER_POINT] * 20)
        for _ in range(12)
    ]
    guests = tuple(
        Guest(f"g{number}", (loads[2 * number], loads[2 * number + 1]), policy=policy)
        for number in range(6)
    )
    workload = Workload("", 8, 120, guests, topology=topology)
    rules = Rules(
        policy=Policy(pin_to=granularity, steps_max=2_000),
        placement_rules=PlacementRules(granularity=granularity),
    )
    pins = simulate(workload, Scheduler(), rules, place=Place.ROUND_ROBIN).pins
    assert pins
    core = {f"g{number}": [2 * number % 4, (2 * number + 1) % 4] for number in range(6)}
    found = 0
    for pin in pins:
        (here,) = {cpu % 4 for cpu in pin.to_cpus}
        changed = core[pin.domain][pin.vcpu] != here
        core[pin.domain][pin.vcpu] = here
        found += changed and len(set(core[pin.domain])) == 1
    return found


@pytest.mark.parametrize(
    ("granularity", "weak"),
    [
        (Granularity.CPU, ()),
        (Granularity.CPU, (2, 3)),
        (Granularity.CORE, (2, 3)),
        (Granularity.CACHE, ()),
    ],
)
def test_spread_keeps_a_guests_vcpus_on_different_cores(
    granularity: Granularity, weak: Sequence[int]
) -> None:
    """Whatever changes, no pin joins two of them on a core, of one that asks for less some do.

    To whatever they are pinned, a cache of one core included, and whatever cores can do.
    """
    assert joined("spread", 0, granularity, weak) == 0
    assert any(joined("balance", seed, granularity, weak) for seed in range(2))


def test_a_guest_that_asks_to_be_held_stays() -> None:
    """{30 30 30* 30*} {}: two must go, and it is never one that asks to be held (*)."""
    guests = tuple(
        dataclasses.replace(one, policy="hold" if number > 1 else None)
        for number, one in enumerate(drawn([30, 30, 30, 30], []).guests)
    )
    result = run(Workload("", 2, PERIODS, guests))
    assert {pin.domain for pin in result.pins} == {"g0a", "g0b"}


def test_floating_vcpus_keep_off_busy_siblings() -> None:
    """The simulated kernel is no fool: two that float have a core each from the first moment on."""
    topology = Topology(tuple(Cpu(cpu, 0, cpu // 2, 0) for cpu in range(4)))
    guests = tuple(guest(name, [100] * 5) for name in "ab")
    workload = Workload("", 4, 5, guests, topology=topology)
    assert simulate(workload, None, place=Place.FLOATING).unmet_ppm == 0


@pytest.mark.parametrize("granularity", [Granularity.CPU, Granularity.CORE])
def test_a_heavy_guest_goes_to_a_strong_pcpu(granularity: Granularity) -> None:
    """Two strong pCPUs and two that do 60 %: {} {} ' {80 10} {} -> one strong one each.

    On the weak one the two do 60 of 90. What they do not get before is 30, after it nothing: one
    pin, since 10 fit on a weak one.
    """
    topology = Topology(
        tuple(Cpu(cpu, 0, cpu, 0, 1_000_000 if cpu < 2 else 600_000) for cpu in range(4))
    )
    workload = dataclasses.replace(drawn([], [], [80, 10], []), topology=topology)
    rules = Rules(
        policy=Policy(pin_to=granularity), placement_rules=PlacementRules(granularity=granularity)
    )
    result = simulate(workload, Scheduler(), rules)
    targets = {pin.domain: str(pin.to_cpus) for pin in result.pins}
    assert targets in ({"g2a": "0"}, {"g2a": "1"})
    assert len(result.pins) == 1
    assert result.periods[0].unmet_ns == pytest.approx(PERIOD_NS * 3 / 10, rel=0.05)
    assert result.periods[-1].unmet_ns == 0


@pytest.mark.parametrize("granularity", [Granularity.CPU, Granularity.CORE])
@pytest.mark.parametrize(("load", "each"), [(25, 2), (20, 3)])
def test_no_turns_are_taken_on_pcpus_of_two_kinds(
    granularity: Granularity, load: int, each: int
) -> None:
    """PCPUs 0 and 1 are strong, 2 and 3 do 60 %: {25 25} {25 25} ' {25 25} {25 25}, and with 20.

    On a weak one 25 points of work take 42 % of the time. Taken for 42 points, these went to the
    strong ones, were 25 there, and went back: 190 pins in 100 periods. {20 20 20} four times ends
    at the very threshold, so there may be one more plan, for other vCPUs.
    """
    topology = Topology(
        tuple(Cpu(cpu, 0, cpu, 0, 1_000_000 if cpu < 2 else 600_000) for cpu in range(4))
    )
    workload = dataclasses.replace(drawn(*[[load] * each] * 4), topology=topology)
    rules = Rules(
        policy=Policy(pin_to=granularity), placement_rules=PlacementRules(granularity=granularity)
    )
    pins = simulate(workload, Scheduler(), rules).pins
    assert len({pin.period for pin in pins}) <= (1 if load == 25 else 2)
    assert len({pin.domain for pin in pins}) == len(pins)
    assert not any(pin.back for pin in pins)


def test_sets_of_pcpus_need_fewer_pins() -> None:
    """Two caches of four pCPUs, 16 guests that want 0, 20 or 60 %, each in six phases of a minute.

    All begin on one pCPU. Pinned to a cache the kernel spreads them within it, so that a change of
    phase costs a pin only where it upsets the caches; and less of what is wanted stays undone.
    """
    chance = random.Random(1)
    guests = tuple(
        guest(
            f"g{number}",
            [load for _ in range(6) for load in [chance.choice([0, 20, 60])] * 20],
            "0",
        )
        for number in range(16)
    )
    workload = Workload("", 8, 120, guests)
    topology = Topology(tuple(Cpu(cpu, 0, cpu, cpu // 4) for cpu in range(8)))

    def simulated(granularity: Granularity) -> simulation.Result:
        rules = Rules(
            policy=Policy(pin_to=granularity),
            placement_rules=PlacementRules(granularity=granularity),
            half_life_s=9,
        )
        return simulate(workload, Scheduler(), rules, topology=topology)

    caches, cpus = simulated(Granularity.CACHE), simulated(Granularity.CPU)
    assert {str(pin.to_cpus) for pin in caches.pins} == {"0-3", "4-7"}
    assert len(caches.pins) * 3 < len(cpus.pins) * 2
    assert caches.unmet_ppm < cpus.unmet_ppm
