"""Decides which pins to change, and why no others.

Rule: `plan` is a pure function of a `Host` and a `Policy`. It knows neither time nor libvirt, and
its answer does not depend on the order of its input.

Problem: find few pin changes after which the busiest and the freest pCPU are less than the
    threshold apart; where that is out of reach, come as close as moves that pay can, and rest.
Approach: steepest descent. Take from the busiest pCPU the vCPU that best evens it out with a
    freer one, never so that the imbalance only changes sides; put a pCPU aside that no move can
    help. Then keep the net difference, and drop every move that balance does not need.
Terms: a bound vCPU may use one pCPU, a floating one (floater) several. In the *measured* view a
    floater counts where it was last seen; in the *poured* view floaters fill the least loaded
    pCPUs of their masks like water, as the kernel spreads them within milliseconds.
Algorithm: 1. With `Floating.PIN`, plan on the measured view, floaters movable; that plan is taken
    only when it pins a floater, ends balanced and leaves every pCPU it touches below saturation.
    2. Otherwise floaters are the kernel's: plan on the poured view, and move bound vCPUs only.
Properties: no vCPU is moved twice; masks and fixed vCPUs are respected; the gap never grows;
    planning again on the result yields nothing; a pCPU with one vCPU keeps it. At most one plan
    per floater can come of step 1, as each binds one.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from vcpusched.model import PPM, CpuSet, Host, Vcpu, VcpuId

SATURATION_PPM: Final = 900_000
"""Load from which on a pCPU counts as saturated for binding floaters: above it bursts of the vCPUs
bound there collide where floating ones would have gone elsewhere."""


class Floating(enum.StrEnum):
    """What to do with vCPUs that may use several pCPUs."""

    PIN = "pin"
    KERNEL = "kernel"


class Stop(enum.StrEnum):
    """Why planning ended."""

    BALANCED = "balanced"
    NO_GAIN = "no_gain"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the administrator wants of a plan.

    `balance_threshold_ppm`: the gap from which on a host is unbalanced, above 0.
    `min_gain_ppm`: where balance is out of reach, how much a move must at least lower the load of
    the pCPU that it leaves or the load that decides there, whichever is less.
    """

    balance_threshold_ppm: int = 100_000
    min_gain_ppm: int = 50_000
    floating: Floating = Floating.PIN


@dataclass(frozen=True, slots=True)
class Move:
    """One pin to change; `reason` is a sentence for the administrator."""

    vcpu: VcpuId
    domain: str
    from_cpus: CpuSet
    to_cpus: CpuSet
    load_ppm: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in the order to do it, and what comes of it.

    `balanced` describes the host as found, `stop` why planning ended; `gap` is the load of the
    busiest less that of the freest pCPU, `loads` the load of each pCPU; `binds_floaters` tells
    which of the two views the plan was made on.
    """

    balanced: bool
    stop: Stop
    gap_before_ppm: int
    gap_after_ppm: int
    loads_before_ppm: tuple[tuple[int, int], ...]
    loads_after_ppm: tuple[tuple[int, int], ...]
    moves: tuple[Move, ...]
    binds_floaters: bool = False


def plan(host: Host, policy: Policy) -> Plan:
    """Plan the pin changes of one decision."""
    vcpus = tuple(sorted(host.vcpus, key=lambda vcpu: vcpu.id))
    if policy.floating is Floating.PIN:
        binding = _plan_binding(host, vcpus, policy)
        if binding is not None:
            return binding
    poured = [not vcpu.is_bound for vcpu in vcpus]
    start = _Board.of(host, vcpus, poured)
    movable = [vcpu.is_bound and not vcpu.fixed for vcpu in vcpus]
    return _settle(start, movable, policy)


def _plan_binding(host: Host, vcpus: Sequence[Vcpu], policy: Policy) -> Plan | None:
    """Plan on the measured view; None where floaters are better left to the kernel."""
    managed = host.online
    poured = [not vcpu.is_bound and (vcpu.on is None or vcpu.on not in managed) for vcpu in vcpus]
    start = _Board.of(host, vcpus, poured)
    if start.gap_ppm() < policy.balance_threshold_ppm:
        return None
    floaters = [
        not vcpu.is_bound and not vcpu.fixed and not pour
        for vcpu, pour in zip(vcpus, poured, strict=True)
    ]
    if not any(floaters):
        return None
    bound = [vcpu.is_bound and not vcpu.fixed for vcpu in vcpus]
    # Floaters alone first: binding one costs no vCPU a second pin.
    for movable in (floaters, [a or b for a, b in zip(floaters, bound, strict=True)]):
        found = _settle(start, movable, policy)
        if _binds_well(found, vcpus):
            return found
    return None


def _binds_well(found: Plan, vcpus: Sequence[Vcpu]) -> bool:
    floating = {vcpu.id: vcpu.on for vcpu in vcpus if not vcpu.is_bound}
    if found.stop is not Stop.BALANCED or not found.binds_floaters:
        return False
    loads = dict(found.loads_after_ppm)
    touched = {cpu for move in found.moves for cpu in move.to_cpus}
    touched |= {
        cpu
        for move in found.moves
        for cpu in ([floating[move.vcpu]] if move.vcpu in floating else move.from_cpus)
        if cpu is not None
    }
    return all(loads.get(cpu, 0) < SATURATION_PPM for cpu in touched)


def _settle(start: "_Board", movable: Sequence[bool], policy: Policy) -> Plan:
    """Give the better of two plans: keeping a guest's vCPUs apart, or not minding."""
    if start.gap_ppm() < policy.balance_threshold_ppm:
        return _finish(start, start, policy)
    ends = [_descend(start, movable, policy, keep_apart=apart) for apart in (True, False)]
    apart, plain = (_finish(start, end, policy) for end in ends)
    as_good = (
        apart.stop is plain.stop
        and len(apart.moves) <= len(plain.moves)
        and apart.gap_after_ppm < plain.gap_after_ppm + policy.balance_threshold_ppm // 2
    )
    return apart if as_good else plain


def _descend(
    start: "_Board", movable: Sequence[bool], policy: Policy, *, keep_apart: bool
) -> "_Board":
    """Improve until balanced, or until no move pays."""
    board = start
    while True:
        free = _walk(board, movable, policy, gain_min_ppm=1, keep_apart=keep_apart)
        if free.gap_ppm() < policy.balance_threshold_ppm:
            return _prune(start, free, policy)
        paying = _walk(
            board, movable, policy, gain_min_ppm=policy.min_gain_ppm, keep_apart=keep_apart
        )
        # From where paying moves end, balance may have come into reach: look again, so that
        # planning on the result finds nothing new.
        if paying.place == board.place:
            return board
        board = paying


def _walk(
    start: "_Board",
    movable: Sequence[bool],
    policy: Policy,
    *,
    gain_min_ppm: int,
    keep_apart: bool,
) -> "_Board":
    """Make single moves, each off the busiest pCPU that one can help, until balanced."""
    board = start
    aside: set[int] = set()
    while board.gap_ppm() >= policy.balance_threshold_ppm:
        busiest = max(
            (cpu for cpu in board.levels if cpu not in aside),
            key=lambda cpu: (board.levels[cpu], -cpu),
            default=None,
        )
        if busiest is None:
            break
        step = _best_step(board, busiest, movable, gain_min_ppm, keep_apart=keep_apart)
        if step is None:
            aside.add(busiest)
            continue
        board = step
        aside.clear()
    return board


def _best_step(
    board: "_Board", busiest: int, movable: Sequence[bool], gain_min_ppm: int, *, keep_apart: bool
) -> "_Board | None":
    members = board.members[busiest]
    if len(members) < 2:  # noqa: PLR2004  a vCPU alone on its pCPU stays
        return None
    freest_first = sorted(board.levels, key=lambda cpu: (board.levels[cpu], cpu))
    options = []
    for index in members:
        if not movable[index]:
            continue
        for target in _targets(board, index, busiest, freest_first, keep_apart=keep_apart):
            load_ppm = board.vcpus[index].load_ppm
            peak_ppm = max(board.levels[busiest] - load_ppm, board.levels[target] + load_ppm)
            if peak_ppm > board.levels[busiest] - gain_min_ppm:
                continue
            crowd = board.relatives(index, target) - board.relatives(index, busiest)
            options.append((crowd if keep_apart else 0, peak_ppm, crowd, load_ppm, target, index))
    for *_, target, index in sorted(options):
        step = board.moved(index, target)
        # Where floaters were poured, what the move really does shows only after pouring anew.
        if step.profile() < board.profile() and step.gap_ppm() <= board.gap_ppm():
            return step
    return None


def _targets(
    board: "_Board", index: int, busiest: int, freest_first: Sequence[int], *, keep_apart: bool
) -> Iterable[int]:
    """Give the freest allowed pCPU, and the freest one without a vCPU of the same guest."""
    allowed = board.vcpus[index].allowed
    candidates = [cpu for cpu in freest_first if cpu != busiest and cpu in allowed]
    yield from candidates[:1]
    if keep_apart:
        yield from [cpu for cpu in candidates if not board.relatives(index, cpu)][:1]


def _prune(start: "_Board", end: "_Board", policy: Policy) -> "_Board":
    """Take back every move without which the end is balanced too, the smallest load first."""
    moved = [index for index, cpu in enumerate(end.place) if cpu != start.place[index]]
    for index in sorted(moved, key=lambda index: (end.vcpus[index].load_ppm, index)):
        home = start.place[index]
        if home is not None:
            without = end.moved(index, home)
            if without.gap_ppm() < policy.balance_threshold_ppm:
                end = without
    return end


def _finish(start: "_Board", end: "_Board", policy: Policy) -> Plan:
    """Turn the difference of two boards into a plan, ordered so that no step raises the peak."""
    left = {
        index: target
        for index, target in enumerate(end.place)
        if target is not None and target != start.place[index]
    }
    board, moves = start, []
    while left:
        index = min(left, key=lambda index: (board.levels[left[index]], left[index], index))
        target = left.pop(index)
        vcpu, source = board.vcpus[index], board.place[index]
        after = board.moved(index, target)
        moves.append(
            Move(
                vcpu=vcpu.id,
                domain=vcpu.domain,
                from_cpus=vcpu.cpus,
                to_cpus=CpuSet.of([target]),
                load_ppm=vcpu.load_ppm,
                reason=_reason(board, after, source, target),
            )
        )
        board = after
    threshold_ppm = policy.balance_threshold_ppm
    return Plan(
        balanced=start.gap_ppm() < threshold_ppm,
        stop=Stop.BALANCED if end.gap_ppm() < threshold_ppm else Stop.NO_GAIN,
        gap_before_ppm=start.gap_ppm(),
        gap_after_ppm=end.gap_ppm(),
        loads_before_ppm=tuple(sorted(start.levels.items())),
        loads_after_ppm=tuple(sorted(end.levels.items())),
        moves=tuple(moves),
        binds_floaters=any(len(move.from_cpus) > 1 for move in moves),
    )


def _reason(before: "_Board", after: "_Board", source: int | None, target: int) -> str:
    if source is None:
        return f"pCPU {target} was at {_percent(before.levels[target])}"
    return (
        f"pCPU {source} was at {_percent(before.levels[source])} and pCPU {target} at "
        f"{_percent(before.levels[target])}; this makes them {_percent(after.levels[source])} and "
        f"{_percent(after.levels[target])}"
    )


def _percent(load_ppm: int) -> str:
    return f"{load_ppm * 100 / PPM:.0f} %"


@dataclass(frozen=True, slots=True)
class _Board:
    """Where every vCPU counts, and the load of every pCPU that comes of it.

    `place` holds, by the index of the vCPU, the pCPU it counts on; None for one that is poured or
    on no managed pCPU.
    """

    vcpus: tuple[Vcpu, ...]
    place: tuple[int | None, ...]
    poured: tuple[int, ...]
    base: dict[int, int]
    levels: dict[int, int] = field(default_factory=dict)
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, host: Host, vcpus: Sequence[Vcpu], poured: Sequence[bool]) -> Self:
        base = {cpu.id: cpu.host_load_ppm for cpu in sorted(host.cpus, key=lambda cpu: cpu.id)}
        place: list[int | None] = []
        for vcpu, pour in zip(vcpus, poured, strict=True):
            cpu = next(iter(vcpu.cpus)) if vcpu.is_bound else vcpu.on
            place.append(None if pour or cpu not in base else cpu)
        members: dict[int, list[int]] = {cpu: [] for cpu in base}
        for index, cpu in enumerate(place):
            if cpu is not None:
                base[cpu] += vcpus[index].load_ppm
                members[cpu].append(index)
        water = [index for index, pour in enumerate(poured) if pour]
        # Whoever has least choice is poured first, so that the others can flow around it.
        water.sort(key=lambda index: (len(vcpus[index].cpus), vcpus[index].id))
        board = cls(
            vcpus=tuple(vcpus),
            place=tuple(place),
            poured=tuple(water),
            base=base,
            members={cpu: tuple(indices) for cpu, indices in members.items()},
        )
        board.levels.update(board.poured_levels())
        return board

    def poured_levels(self) -> dict[int, int]:
        """Give the loads with the floaters poured over the bound ones."""
        levels = dict(self.base)
        for index in self.poured:
            vcpu = self.vcpus[index]
            mask = [cpu for cpu in vcpu.cpus if cpu in levels]
            for cpu, amount_ppm in _pour(levels, mask, vcpu.load_ppm):
                levels[cpu] += amount_ppm
        return levels

    def moved(self, index: int, target: int) -> "_Board":
        """Give the board with one vCPU elsewhere."""
        source, load_ppm = self.place[index], self.vcpus[index].load_ppm
        place = list(self.place)
        place[index] = target
        base, members = dict(self.base), dict(self.members)
        if source is not None:
            base[source] -= load_ppm
            members[source] = tuple(other for other in members[source] if other != index)
        base[target] += load_ppm
        members[target] = (*members[target], index)
        board = _Board(self.vcpus, tuple(place), self.poured, base, {}, members)
        board.levels.update(board.poured_levels())
        return board

    def gap_ppm(self) -> int:
        """Give the load of the busiest less that of the freest pCPU."""
        return max(self.levels.values(), default=0) - min(self.levels.values(), default=0)

    def profile(self) -> list[int]:
        """Give the loads, largest first: of two boards the one with the smaller list is better."""
        return sorted(self.levels.values(), reverse=True)

    def relatives(self, index: int, cpu: int) -> int:
        """Count the other vCPUs of the same domain on a pCPU."""
        identity = self.vcpus[index].id
        return sum(
            other != index
            and self.vcpus[other].id.uuid == identity.uuid
            and self.vcpus[other].id.domain_id == identity.domain_id
            for other in self.members[cpu]
        )


def _pour(levels: dict[int, int], mask: Sequence[int], load_ppm: int) -> list[tuple[int, int]]:
    """Share a load over the least loaded pCPUs of a mask so that their levels become equal."""
    order = sorted(mask, key=lambda cpu: (levels[cpu], cpu))
    if not order:
        return []
    total_ppm, wet = load_ppm, 0
    for cpu in order:
        if wet and total_ppm <= levels[cpu] * wet:
            break
        total_ppm += levels[cpu]
        wet += 1
    level_ppm, rest_ppm = divmod(total_ppm, wet)
    return [
        (cpu, level_ppm + (position < rest_ppm) - levels[cpu])
        for position, cpu in enumerate(order[:wet])
    ]
