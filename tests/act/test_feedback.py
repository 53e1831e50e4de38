"""What came of plans, and vCPUs that were better off unbound."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from builders import change, host

from vcpusched.act.actuator import Event, Failure
from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.act.feedback import (
    EARLY_PERIODS,
    VERDICT_NS,
    Expectation,
    Finding,
    Rest,
    Verdict,
    early,
    expect,
    judge,
)
from vcpusched.act.ledger import TO_ORIGINAL, Changed
from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.act.repairs import worse_bound
from vcpusched.act.table import BACK_OFF_NS, VcpuTable
from vcpusched.model import (
    PPM,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    DomainUuid,
    Host,
    HostCpu,
    Topology,
    Vcpu,
    VcpuId,
)
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.plan.planner import Cause, Floating, Move, Policy, plan
from vcpusched.sample import Definition, DomainReading, Origin, Sample, Unread, VcpuReading
from vcpusched.service.run_directory import LedgerFile
from vcpusched.simulate.simulator import Place, SimulatedHost
from vcpusched.simulate.workload import Guest, Workload

POLICY = Policy(min_gain_ppm=0)
SECOND_NS = 1_000_000_000


def finding(
    drawn: Host,
    waits: Mapping[VcpuId, int],
    busy: Mapping[int, int] | None = None,
    at_s: float = 0,
    policy: Policy = POLICY,
) -> Finding:
    """Give a look at a host."""
    found = plan(drawn, policy)
    return Finding(round(at_s * SECOND_NS), drawn, policy, found, waits, busy or {})


def waiting(drawn: Host, percent: float) -> dict[VcpuId, int]:
    """Have all vCPUs of pCPU 0 wait for so much of the time."""
    ppm = round(percent * PPM_PER_POINT)
    return {vcpu.id: ppm for vcpu in drawn.vcpus if 0 in vcpu.cpus and ppm}


def carried_out(drawn: Host, number: int = 7, percent: float = 75) -> tuple[Expectation, Host]:
    """Carry out the plan for a host; gives what is expected of it, and the host after it."""
    first = finding(drawn, waiting(drawn, percent))
    to = {move.vcpu: move.to_cpus for move in first.plan.moves}
    after = tuple(
        dataclasses.replace(vcpu, cpus=to.get(vcpu.id, vcpu.cpus)) for vcpu in drawn.vcpus
    )
    expectation = expect(number, first, first.plan.moves)
    return expectation, dataclasses.replace(drawn, vcpus=after)


HOGS = host([100, 100, 100, 100], [])
"""Each runs a quarter and waits for three. Two leave; then each has half, and waits for half."""

THREE = host([70, 70, 70], [])
"""One leaves, which leaves a gap of 70 points."""


def test_a_plan_expects_less_wait() -> None:
    """{100 x 4} {}: from 75 % to 1 - 1/2 for all four, also for those that stay."""
    expectation, _ = carried_out(HOGS)
    assert {wait[:2] for wait in expectation.waits.values()} == {(750_000, 500_000)}
    assert len(expectation.waits) == 4
    assert len(expectation.moves) == 2


def test_of_whom_less_wait_is_expected() -> None:
    """Of those that waited 5 % or more on the pCPU that others left, not of one elsewhere."""
    drawn = host([100, 100, 100, 100], [], [60])
    first = finding(drawn, dict.fromkeys((vcpu.id for vcpu in drawn.vcpus), 50_000))
    expected = expect(1, first, first.plan.moves).waits
    assert expected.keys() == {vcpu.id for vcpu in drawn.vcpus if 0 in vcpu.cpus}
    less = finding(drawn, dict.fromkeys((vcpu.id for vcpu in drawn.vcpus), 49_999))
    assert not expect(1, less, less.plan.moves).waits


@pytest.mark.parametrize(
    ("percent", "verdict"),
    [(50, Verdict.HELPED), (62.5, Verdict.HELPED), (62.6, Verdict.NO_HELP), (75, Verdict.NO_HELP)],
)
def test_half_of_what_was_expected_is_enough(percent: float, verdict: Verdict) -> None:
    """75 %, expected 50: at 62.5 it helped. Only once its time is over can it be said not to."""
    expectation, after = carried_out(HOGS)
    waits = dict.fromkeys((vcpu.id for vcpu in after.vcpus), round(percent * PPM_PER_POINT))
    late = judge(expectation, finding(after, waits, at_s=VERDICT_NS / SECOND_NS))
    assert late is not None
    assert late.verdict is verdict
    assert (late.number, late.waiting, late.wait_before_ppm) == (7, 4, 750_000)
    assert (late.wait_expected_ppm, late.wait_ppm) == (500_000, round(percent * PPM_PER_POINT))
    early = judge(expectation, finding(after, waits, at_s=19))
    assert (early is None) == (verdict is Verdict.NO_HELP)


def test_who_waits_longest_by_then() -> None:
    """Of all vCPUs of the host; nobody where none really waits, and a wait of the past is none."""
    expectation, after = carried_out(HOGS)
    ids = [vcpu.id for vcpu in after.vcpus]
    waits = dict(zip(ids, (100_000, 480_000, 470_000, 0), strict=True)) | {
        VcpuId(DomainUuid("gone"), 1, 0): 900_000
    }
    late = judge(expectation, finding(after, waits, at_s=30))
    assert late is not None
    assert late.longest == (after.vcpus[1], 480_000)
    for wait_ppm, really in ((50_000, True), (49_999, False)):
        calm = judge(expectation, finding(after, dict.fromkeys(ids, wait_ppm), at_s=30))
        assert calm is not None
        assert (calm.longest is not None) is really


def test_what_cannot_be_judged() -> None:
    """More is wanted where they are by now; they ended."""
    expectation, after = carried_out(host([40, 40, 40], []))
    more, most = (
        dataclasses.replace(
            after, vcpus=tuple(dataclasses.replace(vcpu, load_ppm=ppm) for vcpu in after.vcpus)
        )
        for ppm in (440_001, 440_000)
    )
    waits = dict.fromkeys((vcpu.id for vcpu in more.vcpus), 750_000)
    assert judge(expectation, finding(most, waits, at_s=1)) is None
    looks = {
        "more": finding(more, waits, at_s=1),
        "ended": finding(dataclasses.replace(after, vcpus=()), {}, at_s=30),
    }
    for name, later in looks.items():
        effect = judge(expectation, later)
        assert effect is not None, name
        assert effect.verdict is Verdict.UNCLEAR, name
    assert judge(expectation, finding(after, waits, at_s=3)) is None


def test_nobody_waited() -> None:
    """{30 30} {}: 60 % of a pCPU; the next cycle can see the gap, and there is nothing else."""
    expectation, after = carried_out(host([30, 30], []), percent=4)
    effect = judge(expectation, finding(after, {}, at_s=1))
    assert effect is not None
    assert effect.verdict is Verdict.NO_WAIT
    assert (effect.gap_before_ppm, effect.gap_expected_ppm, effect.gap_ppm) == (600_000, 0, 0)


def judged_at(table: VcpuTable, now_ns: int, percent: float) -> None:
    """Carry the plan for THREE out, and judge it at a time, when all wait for so much."""
    expectation, after = carried_out(THREE)
    waits = dict.fromkeys((each.id for each in after.vcpus), round(percent * PPM_PER_POINT))
    table.planned(7, expectation.finding, expectation.moves)
    assert len(table.judged(finding(after, waits, at_s=now_ns / SECOND_NS))) == 1


def test_after_a_plan_in_vain_the_next_waits_twice_as_long_each_time() -> None:
    """Five minutes, ten, an hour at most, and five again once one helped."""
    table, now_ns = VcpuTable(), VERDICT_NS
    for minutes in (5, 10, 20, 40, 60, 60):
        judged_at(table, now_ns, 75)
        assert table.is_in_vain
        now_ns += minutes * 60 * SECOND_NS
        assert is_in_vain(table, now_ns - 1), minutes
        assert not is_in_vain(table, now_ns), minutes
    judged_at(table, now_ns, 40)
    assert not table.is_in_vain
    judged_at(table, now_ns, 75)
    assert is_in_vain(table, now_ns + 300 * SECOND_NS - 1)
    assert not is_in_vain(table, now_ns + 300 * SECOND_NS)


def test_part_of_a_plan_is_not_in_vain() -> None:
    """What `max_moves` cut off is made once the part was judged, however little that helped."""
    for most in (None, 1):
        table, policy = VcpuTable(), Policy(max_moves=most)
        first = finding(HOGS, waiting(HOGS, 75), policy=policy)
        table.planned(7, first, first.plan.moves)
        to = {move.vcpu: move.to_cpus for move in first.plan.moves}
        after = dataclasses.replace(
            HOGS,
            vcpus=tuple(
                dataclasses.replace(one, cpus=to.get(one.id, one.cpus)) for one in HOGS.vcpus
            ),
        )
        later = finding(after, waiting(HOGS, 75), at_s=30, policy=policy)
        assert [effect.verdict for effect in table.judged(later)] == [Verdict.NO_HELP]
        assert table.is_in_vain is (most is None)


def is_in_vain(table: VcpuTable, now_ns: int) -> bool:
    """Return whether a plan would be in vain at a time, on THREE as the plan left it."""
    _, after = carried_out(THREE)
    assert table.judged(finding(after, {}, at_s=now_ns / SECOND_NS)) == ()
    return table.is_in_vain


@pytest.mark.parametrize(
    ("load", "cpus", "policy", "ends"),
    [
        (70, "1", POLICY, False),
        (89, "1", POLICY, False),
        (90, "1", POLICY, True),
        (70, "0-1", POLICY, True),
        (70, "1", Policy(), True),
    ],
)
def test_what_ends_the_wait_after_a_plan_in_vain(
    load: int, cpus: str, policy: Policy, *, ends: bool
) -> None:
    """{70 70} {70}, a gap of 70 points: one of 90 is another, for as long as it lasts.

    So is a host on which the vCPU that was moved is restored, or to be planned by another policy.
    """
    table = VcpuTable()
    judged_at(table, VERDICT_NS, 75)
    _, later = carried_out(THREE)
    later = change(later, "g0", load_ppm=load * PPM_PER_POINT)
    later = change(later, "g2", cpus=CpuSet.parse(cpus))
    assert table.judged(finding(later, {}, at_s=30, policy=policy)) == ()
    assert table.is_in_vain is not ends
    fewer = dataclasses.replace(later, vcpus=later.vcpus[1:])
    more = dataclasses.replace(later, cpus=(*later.cpus, HostCpu(Cpu(2), 700_000)))
    for changed in (fewer, more, change(later, "g1", allowed=CpuSet.of([0]))):
        table.judged(finding(changed, {}, at_s=30))
        assert not table.is_in_vain
    assert is_in_vain(table, 31 * SECOND_NS)


def test_a_crowd_ends_the_wait_after_a_plan_in_vain() -> None:
    """All waited 75% when it was judged; with 10 points more something else has happened."""
    table, (_, after) = VcpuTable(), carried_out(THREE)
    judged_at(table, VERDICT_NS, 75)
    for more, ends in ((9, False), (10, True)):
        waits = dict.fromkeys((vcpu.id for vcpu in after.vcpus), (75 + more) * PPM_PER_POINT)
        assert table.judged(finding(after, waits, at_s=30)) == ()
        assert table.is_in_vain is not ends


def test_where_guests_or_pcpus_came_or_went_nothing_is_known_to_be_in_vain() -> None:
    """One that was moved ended before the verdict, or one that was not; or a pCPU came.

    That is said when the plan's time is over, and the next plan need not wait.
    """
    expectation, later = carried_out(HOGS)
    moved = {move.vcpu for move in expectation.moves}
    assert [vcpu.id in moved for vcpu in later.vcpus] == [True, False, False, True]
    for changed in (
        dataclasses.replace(later, vcpus=later.vcpus[1:]),
        dataclasses.replace(later, vcpus=(later.vcpus[0], *later.vcpus[2:])),
        dataclasses.replace(later, cpus=(*later.cpus, HostCpu(Cpu(2)))),
    ):
        table = VcpuTable()
        table.planned(7, expectation.finding, expectation.moves)
        waits = dict.fromkeys((vcpu.id for vcpu in changed.vcpus), 750_000)
        assert table.judged(finding(changed, waits, at_s=19)) == ()
        (effect,) = table.judged(finding(changed, waits, at_s=20))
        assert effect.verdict is Verdict.UNCLEAR
        assert not table.is_in_vain


@pytest.mark.parametrize("percent", [0, 75])
def test_what_was_taken_back_is_no_effect_of_the_plan(percent: float) -> None:
    """Both that left wait on and are restored: whether they still wait then, nobody knows why.

    They are left alone for the five minutes of that, no less and no more. The two that stayed were
    let off the plan's pCPU by a person.
    """
    expectation, after = carried_out(HOGS)
    table = VcpuTable()
    table.planned(7, expectation.finding, expectation.moves)
    moved = [move.vcpu for move in expectation.moves]
    both = CpuSet.parse("0-1")
    for vcpu in moved:
        restored = Move(vcpu, "", CpuSet.of([1]), both, 0, "", cause=Cause.WORSE_OFF)
        table.note(Changed(restored), 8, 0)
    freed = tuple(dataclasses.replace(vcpu, cpus=both) for vcpu in after.vcpus)
    waits = dict.fromkeys((vcpu.id for vcpu in freed), round(percent * PPM_PER_POINT))
    now = finding(dataclasses.replace(after, vcpus=freed), waits, at_s=VERDICT_NS / SECOND_NS)
    (effect,) = table.judged(now)
    assert (effect.verdict, effect.waiting) == (Verdict.UNCLEAR, 0)
    assert stays(table, moved[0], BACK_OFF_NS - 1)
    assert not stays(table, moved[0], BACK_OFF_NS)


def test_who_was_worse_off_bound_is_left_alone_twice_as_long_each_time() -> None:
    """Five minutes, ten, twenty, and a day at most."""
    table, vcpu, now_ns = VcpuTable(), HOGS.vcpus[0].id, 0
    freed = Move(vcpu, "", CpuSet.of([1]), CpuSet.parse("0-1"), 0, "", cause=Cause.WORSE_OFF)
    for minutes in (*(5 << time for time in range(9)), 1440, 1440):
        table.note(Changed(freed), 1, now_ns)
        now_ns += minutes * 60 * SECOND_NS
        assert stays(table, vcpu, now_ns - 1), minutes
        assert not stays(table, vcpu, now_ns), minutes


def test_a_cooldown_ends_after_its_time_or_with_its_vcpu() -> None:
    """It lasts while its guest cannot be read, and beside a pCPU that refused another's pin."""
    vcpu = HOGS.vcpus[0].id
    gone, hidden = Sample(Topology(()), ()), {vcpu.uuid: Unread("g0", "hangs")}
    for unread, is_kept in (({}, False), (hidden, True)):
        table = VcpuTable()
        table.note(Changed(Move(vcpu, "", CpuSet.of([0]), CpuSet.of([1]), 0, "")), 1, 0)
        assert stays(table, vcpu, 1, cooldown_s=60)
        table.note(
            Failure(Move(vcpu, "", CpuSet.of([0]), CpuSet.of([1]), 0, ""), "", blamed=(1,)), 1, 0
        )
        assert stays(table, vcpu, 60 * SECOND_NS, cooldown_s=60)
        table.applied(HOGS, dataclasses.replace(gone, unread=unread), number=1, cooldown_s=60)
        assert stays(table, vcpu, 60 * SECOND_NS, cooldown_s=60) is is_kept
        assert not stays(table, vcpu, 60 * SECOND_NS + 1, cooldown_s=60)


def test_a_pin_that_is_made_again_after_a_reset_is_no_move() -> None:
    """It is where it was before, so that a plan may move it."""
    vcpu, table = HOGS.vcpus[0].id, VcpuTable()
    again = Move(vcpu, "", CpuSet.parse("0-1"), CpuSet.of([1]), 0, "", cause=Cause.RESET)
    table.note(Changed(again), 1, 0)
    assert not stays(table, vcpu, 1, cooldown_s=60)


def stays(table: VcpuTable, vcpu: VcpuId, now_ns: int, cooldown_s: float = 0) -> bool:
    """Return whether a vCPU of HOGS is left alone at a time."""
    there = (VcpuReading(vcpu.vcpu, 0, CpuSet.of([0])),)
    domain = DomainReading(vcpu.uuid, vcpu.domain_id, "", now_ns, there, Definition())
    sample = Sample(Topology(()), (domain,))
    applied = table.applied(HOGS, sample, number=1, cooldown_s=cooldown_s)
    (found,) = [other for other in applied.vcpus if other.id == vcpu]
    assert found.fixed == bool(found.why)
    return found.fixed


def test_who_refuses_is_left_alone_twice_as_long_each_time() -> None:
    """Ten cycles, twenty, and ten again once a pin was made; a guest like a pCPU."""
    vcpu = HOGS.vcpus[0].id
    table, move = VcpuTable(), Move(vcpu, "", CpuSet.of([0]), CpuSet.of([1]), 0, "")
    for who in (vcpu.uuid, 1):
        for number, cycles in ((0, 10), (10, 20), (30, 40)):
            table.note(Failure(move, "", blamed=(who,)), number, 0)
            assert table.quarantined(number + cycles - 1) == {who}
            assert table.quarantined(number + cycles) == frozenset()
        table.note(Changed(move), 100, 0)
        table.note(Failure(move, "", blamed=(who,)), 100, 0)
        assert table.quarantined(110) == frozenset()
        table.note(Changed(move), 100, 0)


def test_a_guest_of_many_vcpus_is_left_alone_no_longer_for_that() -> None:
    """Ten cycles, though eight of its vCPUs were refused in one; and twenty after the next."""
    guest, table = DomainUuid("g"), VcpuTable()
    for number, cycles in ((0, 10), (10, 20)):
        for vcpu in range(8):
            move = Move(VcpuId(guest, 1, vcpu), "", CpuSet.of([1]), CpuSet.of([0]), 0, "")
            table.note(Failure(move, "", blamed=(guest,)), number, 0)
        assert table.quarantined(number + cycles - 1) == {guest}
        assert table.quarantined(number + cycles) == frozenset()


def bound(original: str, cpus: str = "0", held: str = "") -> tuple[Sample, Host, VcpuId]:
    """Give a sample of one vCPU with a pin of ours on a host of four pCPUs."""
    reading = VcpuReading(
        0,
        0,
        CpuSet.parse(cpus),
        original=CpuSet.parse(original),
        pin=CpuSet.parse(cpus),
        ours=True,
        held=held,
    )
    drawn = host([50], [], [], [])
    vcpu: Vcpu = drawn.vcpus[0]
    domain = DomainReading(
        vcpu.id.uuid, vcpu.id.domain_id, "g", SECOND_NS, (reading,), Definition()
    )
    online = Topology(tuple(Cpu(cpu) for cpu in range(4)))
    return Sample(online, (domain,)), drawn, vcpu.id


@pytest.mark.parametrize(
    ("original", "cpus", "wait", "busy", "freed"),
    [
        ("0-3", "0", 30, (100, 100, 100, 70), True),
        ("0-3", "0", 31, (100, 100, 100, 70), False),
        ("0-2", "0", 30, (100, 100, 100, 0), False),
        ("0-3", "0", 4, (100, 0, 0, 0), False),
        ("3", "0", 50, (100, 0, 0, 0), False),
        ("0-3", "0-1", 50, (100, 100, 0, 0), True),
        ("0-3", "0-1", 50, (100, 79, 0, 0), False),
    ],
)
def test_who_need_not_wait_is_freed(
    original: str, cpus: str, wait: int, busy: tuple[int, ...], *, freed: bool
) -> None:
    """It waits for 5 % or more, and the rest of where it may be is idle for as long.

    Where a pCPU of its own was idle for a fifth of the time others only got in its way.
    """
    sample, drawn, vcpu = bound(original, cpus)
    busy_ppm = {cpu: percent * PPM_PER_POINT for cpu, percent in enumerate(busy)}
    moves = list(worse_bound(sample, finding(drawn, {vcpu: wait * PPM_PER_POINT}, busy_ppm)))
    assert [str(move.to_cpus) for move in moves] == ([original] if freed else [])
    apart = dataclasses.replace(
        drawn, cpus=tuple(HostCpu(Cpu(cpu, isolated=True)) for cpu in range(4))
    )
    assert not list(worse_bound(sample, finding(apart, {vcpu: wait * PPM_PER_POINT}, busy_ppm)))
    # Where the kernel would not let it go it is no better off.
    (domain,) = sample.domains
    definition = dataclasses.replace(domain.definition, cpuset=CpuSet.parse(cpus))
    within = dataclasses.replace(
        sample, domains=(dataclasses.replace(domain, definition=definition),)
    )
    assert not list(worse_bound(within, finding(drawn, {vcpu: wait * PPM_PER_POINT}, busy_ppm)))
    held, drawn, vcpu = bound(original, cpus, held="someone else pinned it")
    assert not list(worse_bound(held, finding(drawn, {vcpu: wait * PPM_PER_POINT}, busy_ppm)))


@pytest.mark.parametrize("floating", Floating)
def test_what_ends_a_rest(floating: Floating) -> None:
    """A load that differs by more than 2 points, another mask, a wait that counts, five minutes."""
    drawn, policy = host([50, 30], []), Policy(floating=floating)
    rest = Rest(drawn, policy, 0, plan(drawn, policy))

    def holds(now_ns: int = 0, **changes: object) -> bool:
        first = dataclasses.replace(drawn.vcpus[0], **changes)  # type: ignore[arg-type]
        now = dataclasses.replace(drawn, vcpus=(first, *drawn.vcpus[1:]))
        return rest.still_holds(now, policy, now_ns)

    assert holds(load_ppm=520_000)
    assert not holds(load_ppm=520_001)
    assert not holds(allowed=CpuSet.parse("0"))
    assert not holds(fixed=True)
    assert not holds(shares=7)
    assert holds(wait_ppm=60_000) is (floating is not Floating.AUTO)
    assert holds(now_ns=299 * SECOND_NS)
    assert not holds(now_ns=300 * SECOND_NS)
    assert not rest.still_holds(drawn, Policy(min_gain_ppm=0), 0)


def test_a_neighbour_appears(tmp_path: Path) -> None:
    """{60 that may use both, bound by us} {}: from period 20 on a hog is bound to the same pCPU.

    After that period it is known that it waited, and it may use both again, whatever cooldown says;
    then it waits no more. It is not bound again for five minutes, 100 periods.
    """
    cooled = Rules(policy=Policy(max_moves=1), cooldown_s=3600)
    freed, waited = neighbour(tmp_path, cooled)
    assert len(freed) == 1
    assert freed[0][0] == 20
    assert freed[0][1].to_cpus == CpuSet.parse("0-1")
    assert waited[20] > PPM // 10
    assert all(wait < PPM // 100 for wait in waited[freed[0][0] + 2 :])


@pytest.mark.parametrize(
    "placement", [PlacementRules("all,^1"), PlacementRules(exclude_domains=("ours",))]
)
def test_what_is_restored_need_not_be_managed(placement: PlacementRules, tmp_path: Path) -> None:
    """Its original affinity has a pCPU that plans may not use by now, or plans leave it alone.

    In the second case it is restored at once, whether it waits or not.
    """
    rules = Rules(placement_rules=placement)
    freed, _ = neighbour(tmp_path, rules)
    # A pCPU that is not managed is no pCPU of the host's, so nobody knows whether it idles.
    assert len(freed) == (1 if placement.exclude_domains else 0)


def test_what_was_not_measured_is_not_judged() -> None:
    """How long those that were moved wait is not known, so not 0, however free their pCPU is."""
    expectation, after = carried_out(HOGS)
    moved = {move.vcpu for move in expectation.moves}
    waits = {vcpu.id: 0 for vcpu in after.vcpus if vcpu.id not in moved}
    assert judge(expectation, finding(after, waits, {0: PPM, 1: 0}, at_s=3)) is None
    late = judge(expectation, finding(after, waits, {0: PPM, 1: 0}, at_s=30))
    assert late is not None
    assert late.verdict is Verdict.UNCLEAR


def test_a_neighbour_appears_in_a_dry_run(tmp_path: Path) -> None:
    """Nothing is pinned then, and nothing restored."""
    assert neighbour(tmp_path, Rules(dry_run=True))[0] == []
    assert neighbour(tmp_path, Rules(paused=True))[0] == []


class MarkedHost(SimulatedHost):
    """A simulated host whose guests take marks and forget them."""

    def mark(self, uuid: DomainUuid, _domain_id: int, _origin: Mapping[int, Origin]) -> None:
        """Mark a guest."""
        self.definition(uuid)


def neighbour(directory: Path, rules: Rules) -> tuple[list[tuple[int, Move]], list[int]]:
    """Run it; gives the moves that freed a vCPU, and how long ours waited in each period."""
    periods = 60
    ours = Guest("ours", ((60 * PPM_PER_POINT,) * periods,))
    hog = Guest("hog", ((PPM,) * (periods - 20),), start=20, pin=CpuSet.of([0]))
    simulated = MarkedHost(Workload("", 2, periods, (ours, hog)), Place.FLOATING)
    keeper = Reconciler(simulated, Book(LedgerFile(directory)))
    scheduler = Scheduler()
    freed: list[tuple[int, Move]] = []
    waited: list[int] = []
    for period in range(periods):
        simulated.pass_period()
        if period == 0:
            (domain,) = keeper.sample().domains
            vcpu = VcpuId(domain.uuid, domain.domain_id, 0)
            keeper.intend([Move(vcpu, domain.name, CpuSet.parse("0-1"), CpuSet.of([0]), 0, "")])
            keeper.pin(vcpu, CpuSet.of([0]))
        policy = dataclasses.replace(rules.policy, floating=Floating.KERNEL)
        events: list[Event] = []
        cycle_rules = dataclasses.replace(rules, policy=policy)
        scheduler.cycle(keeper, cycle_rules, on_event=events.append)
        moves = [event.move for event in events if isinstance(event, Changed)]
        freed += [(period, move) for move in moves if move.cause in TO_ORIGINAL]
        results = {result.domain: result for result in simulated.vcpu_results()}
        waited.append(results["ours"].wait_ns)
        simulated.period += 1
    each = [after - before for before, after in zip([0, *waited], waited, strict=False)]
    return freed, [wait_ns * PPM // 3_000_000_000 for wait_ns in each]


def test_a_pin_must_gain_more_while_loads_are_known_from_few_periods() -> None:
    """Three times as much in the first period, twice in the second, and so on; then no more."""
    asked = Policy(min_gain_ppm=80_000)
    gains = [early(asked, periods).min_gain_ppm for periods in (1, 2, 3, 4, 8, 16, 31, 32)]
    assert gains == [240_000, 160_000, 160_000, 120_000, 100_000, 90_000, 90_000, 80_000]
    assert early(asked, 0) == early(asked, EARLY_PERIODS) == asked


def test_a_pin_to_several_pcpus_acquits_none_that_refused_one() -> None:
    """The kernel takes a set of which it takes one; a pin to that one alone is proof."""
    table, vcpu = VcpuTable(), VcpuId(DomainUuid("g"), 1, 0)
    move = Move(vcpu, "g", CpuSet.of([0]), CpuSet.of([1]), 0, "")
    table.note(Failure(move, "", blamed=(1,)), 1, 0)
    for cpus, left in (("0-3", {1}), ("1", set())):
        table.note(Changed(dataclasses.replace(move, to_cpus=CpuSet.parse(cpus))), 1, 0)
        assert table.quarantined(2) == left
