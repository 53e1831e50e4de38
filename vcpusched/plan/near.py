"""Brings an answer closer to where vCPUs are: the nearest pCPUs that will do, and whole cores.

Rule: pure; knows where pCPUs sit in the machine, which the search for the fewest moves does not.

Problem: caches and memory are near some pCPUs and far from others, and two threads of a core get
    in each other's way. The fewest moves may go anywhere, and treat siblings as strangers.
Approach: mend an answer afterwards. Of pCPUs that do equally well take the nearest; take back a
    far move that gains too little; part two busy siblings while another core idles.
Terms: the distance between two pCPUs is 0 to 4: the same, the same core, cache, node, none of
    these. What a machine does not tell counts as shared by all of the next larger level. Where a
    guest's memory is known to be, moves to its node are nearer than all others.
Properties: the number of moves does not rise but for parted siblings, each of which brings at
    least the gain of a move; the peak and the gap of what is balanced stay within the threshold or
    as they were.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.model import Cpu
from vcpusched.plan.board import Board, Places
from vcpusched.plan.frame import excess, moved

SAME, CORE, CACHE, NODE, ACROSS = range(5)

EXCHANGES_MAX: Final = 64
"""With how many others a mover is tried to change targets: enough for any cache of today."""


@dataclass(frozen=True, slots=True)
class Gains:
    """What a move must bring inside the band, in parts per million of a pCPU, by how far it goes.

    `near_ppm` within a cache, `node_ppm` to another node; half-way between them to another cache of
    the same node.
    """

    near_ppm: int
    node_ppm: int

    def at(self, distance: int) -> int:
        """Give the gain that a move over a distance needs."""
        if distance <= CACHE:
            return self.near_ppm
        if distance == NODE:
            return (self.near_ppm + max(self.near_ppm, self.node_ppm)) // 2
        return max(self.near_ppm, self.node_ppm)


def distance(one: Cpu, other: Cpu) -> int:
    """Give how far apart two pCPUs are, 0 to 4."""
    if one.id == other.id:
        return SAME
    if one.core is not None and one.core == other.core:
        return CORE
    if one.node != other.node:
        return ACROSS
    return CACHE if one.cache == other.cache else NODE


def is_flat(board: Board) -> bool:
    """Tell whether all pCPUs are equally near to each other."""
    return len({(cpu.node, cpu.cache) for cpu in board.sites}) <= 1 and not _cores(board)


def nearer(board: Board, place: Sequence[int], span: int) -> Sequence[int]:
    """Give as good places that are nearer to where vCPUs were.

    `span` is the threshold: in a balanced answer any loads will do that stay within it.
    """
    if not moved(board.home, place) or is_flat(board):
        return place
    return _Approach(board, place, span).run()


def worth_going(
    board: Board, place: Sequence[int], band: tuple[int, int], gains: Gains
) -> Sequence[int]:
    """Give the places without far moves that bring too little into the band.

    Such a vCPU goes to the nearest pCPU for which the gain is enough, or stays. `band` is that of
    the answer, lowest and highest load inside.
    """
    if is_flat(board):
        return place
    places, around = Places(board, place), _Around(board)
    levels = places.levels

    def outside(load: int) -> int:
        return excess(load, *band)

    by_size = sorted(moved(board.home, place), key=lambda vcpu: (board.loads[vcpu], vcpu))
    for vcpu in by_size:
        home, target, size = board.home[vcpu], place[vcpu], board.loads[vcpu]
        far, way = cost(board, vcpu, target), stretch(board, vcpu, target)
        if way <= CACHE:
            continue
        if board.sites[home].capacity_ppm < min(size, board.sites[target].capacity_ppm):
            continue  # a misfit went for what it gets there
        leaving = outside(levels[home] + size) - outside(levels[home])
        if leaving + outside(levels[target] - size) - outside(levels[target]) >= gains.at(way):
            continue
        places.put(vcpu, home)
        for ring in around.rings(vcpu, far):
            nearer = (
                (then, levels[cpu], cpu)
                for cpu in ring
                if levels[cpu] <= levels[home] - size
                and board.allowed[vcpu] >> cpu & 1
                and cpu != home
                and (then := cost(board, vcpu, cpu)) < far
                and leaving + outside(levels[cpu]) - outside(levels[cpu] + size)
                >= gains.at(stretch(board, vcpu, cpu))
                and not _is_weaker(board, cpu, target)
                and not places.joins(vcpu, cpu)
            )
            if (found := min(nearer, default=None)) is not None:
                places.put(vcpu, found[2])
                break
    return places.of


def part_siblings(board: Board, place: Sequence[int], span: int, min_gain: int) -> Sequence[int]:
    """Give places at which no core's threads are busy while another core idles.

    Cores are compared by the mean load of their threads: a thread beside a busy one is worth about
    a quarter, so a core with two busy threads is not half as good as two cores.
    """
    cores = _cores(board)
    if not cores:
        return place
    now, levels = list(place), board.levels(board.at(place))
    on: defaultdict[int, list[int]] = defaultdict(list)
    for vcpu, cpu in enumerate(now):
        if board.allowed[vcpu]:
            on[cpu].append(vcpu)
    sums = {core: sum(levels[cpu] for cpu in cpus) for core, cpus in sorted(cores.items())}
    core_of = {cpu: core for core, cpus in cores.items() for cpu in cpus}
    while True:
        step = _parting(board, cores, sums, levels, on, span, max(min_gain, 1))
        if step is None:
            return now
        vcpu, source, target = step
        size = board.loads[vcpu]
        now[vcpu] = target
        on[source].remove(vcpu)  # and not moved a second time
        for cpu, change in ((source, -size), (target, size)):
            levels[cpu] += change
            sums[core_of[cpu]] += change


def core_loads(board: Board, levels: Sequence[int]) -> list[int]:
    """Give the loads of the cores that have several threads, largest first."""
    sums = (sum(levels[cpu] for cpu in cpus) for cpus in _cores(board).values())
    return sorted(sums, reverse=True)


def _parting(  # noqa: PLR0913, PLR0917  all that one step goes by
    board: Board,
    cores: Mapping[int, Sequence[int]],
    sums: Mapping[int, int],
    levels: Sequence[int],
    on: Mapping[int, list[int]],
    span: int,
    min_gain: int,
) -> tuple[int, int, int] | None:
    judged = [levels[cpu] for cpu in board.judged]
    most, least = max(judged), min(judged)
    # A hair's breadth more is no matter, but where the host would not be balanced any more.
    gap = most - least
    widest = gap + min_gain if gap >= span else min(span - 1, gap + min_gain)
    # In the order of their numbers where they are alike.
    weights = {core: load * len(cores[core]) for core, load in sums.items()}
    free = sorted(weights, key=weights.__getitem__)[:4]
    for core in sorted(sums, key=sums.__getitem__, reverse=True):
        cpus = cores[core]
        if sum(levels[cpu] >= span for cpu in cpus) < 2:  # noqa: PLR2004  nobody to part
            continue
        for other in free:
            apart = sums[core] - sums[other]
            if apart < span * len(cpus):
                break
            target = min(cores[other], key=lambda cpu: (levels[cpu], cpu))
            best: tuple[bool, int, int, int, int] | None = None
            for cpu in cpus:
                for vcpu in on.get(cpu, ()):
                    size = board.loads[vcpu]
                    gain = min(size, apart - size)
                    then = levels[cpu] - size, levels[target] + size
                    # One that moves anyway costs no further pin, so a hair's breadth is no matter.
                    moves = cpu != board.home[vcpu] != target
                    slack = min_gain if moves else 0
                    if (
                        gain >= min_gain
                        and board.allowed[vcpu] >> target & 1
                        and then[1] <= levels[cpu] + slack
                        and max(most, *then) - min(least, *then) <= (widest if moves else gap)
                        and (best is None or (moves, gain, -vcpu) > (*best[:2], -best[2]))
                    ):
                        best = moves, gain, vcpu, cpu, target
            if best is not None:
                return best[2:]
    return None


def _cores(board: Board) -> dict[int, list[int]]:
    """Give the pCPUs of each core that has several; not of one of which not all are judged.

    What such a pCPU really does is not known, so it is not known either whether its core idles.
    """
    judged: defaultdict[int, list[int]] = defaultdict(list)
    for cpu in board.judged:
        core = board.sites[cpu].core
        if core is not None:
            judged[core].append(cpu)
    threads = Counter(site.core for site in board.sites)
    found = {core: cpus for core, cpus in judged.items() if len(cpus) == threads[core]}
    return found if any(len(cpus) > 1 for cpus in found.values()) else {}


def cost(board: Board, vcpu: int, cpu: int) -> int:
    """Give how far a vCPU is from where it was, 0 to 4; 4 more where it is off its memory."""
    memory_node = board.vcpus[vcpu].memory_node
    far = distance(board.sites[board.home[vcpu]], board.sites[cpu])
    if memory_node is None:
        return far
    return ACROSS + far if board.sites[cpu].node != memory_node else min(far, NODE)


def stretch(board: Board, vcpu: int, cpu: int) -> int:
    """Give how far a move takes a vCPU: one that is off its memory leaves nothing there."""
    return min(cost(board, vcpu, cpu), distance(board.sites[board.home[vcpu]], board.sites[cpu]))


class _Around:
    """Which judged pCPUs are near a vCPU."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._by_node: defaultdict[int | None, list[int]] = defaultdict(list)
        self._by_cache: defaultdict[tuple[int | None, int | None], list[int]] = defaultdict(list)
        for cpu in board.judged:
            site = board.sites[cpu]
            self._by_node[site.node].append(cpu)
            self._by_cache[site.node, site.cache].append(cpu)

    def rings(self, vcpu: int, far: int) -> Sequence[Sequence[int]]:
        """Give the pCPUs that may be nearer to where a vCPU was, or to its memory, than this.

        The nearest first, and then again among all.
        """
        site = self._board.sites[self._board.home[vcpu]]
        memory_node = self._board.vcpus[vcpu].memory_node
        beside = self._by_cache[site.node, site.cache]
        node = self._by_node[site.node]
        if memory_node not in {None, site.node} and far >= ACROSS:
            there = self._by_node[memory_node]
            return [there, there + (node if far % ACROSS == 0 else beside)]
        return [beside, node] if far >= ACROSS else [beside]


def _is_weaker(board: Board, cpu: int, than: int) -> bool:
    return board.sites[cpu].capacity_ppm < board.sites[than].capacity_ppm


class _Approach:
    """Places being brought nearer, one vCPU after another."""

    def __init__(self, board: Board, place: Sequence[int], span: int) -> None:
        self._board = board
        self._places = Places(board, place, span)
        self._around = _Around(board)
        self._movers: defaultdict[int, list[int]] = defaultdict(list)
        self._costs: dict[int, int] = {}
        for vcpu in moved(board.home, place):
            self._movers[place[vcpu]].append(vcpu)
            self._costs[vcpu] = cost(board, vcpu, place[vcpu])

    def run(self) -> Sequence[int]:
        """Bring each mover nearer, those that go furthest first."""
        for vcpu in sorted(self._costs, key=lambda vcpu: (-self._costs[vcpu], vcpu)):
            far = self._costs[vcpu]
            if far <= CORE:
                continue
            target = self._nearer_target(vcpu, far)
            if target is not None:
                self._put(vcpu, target)
            elif (other := self._exchange(vcpu, far)) is not None:
                mine, theirs = self._places.of[vcpu], self._places.of[other]
                self._put(vcpu, theirs)
                self._put(other, mine)
        return self._places.of

    def _nearer_target(self, vcpu: int, far: int) -> int | None:
        board, places, size = self._board, self._places, self._board.loads[vcpu]
        target = places.of[vcpu]
        if places.levels[target] - size < places.least:
            return None
        found = [
            (then, places.levels[cpu], cpu)
            for cpu in self._around.rings(vcpu, far)[-1]
            if board.allowed[vcpu] >> cpu & 1
            and cpu != board.home[vcpu]
            and places.levels[cpu] + size <= places.most
            and not _is_weaker(board, cpu, target)
            and not places.joins(vcpu, cpu)
            and (then := cost(board, vcpu, cpu)) < far
        ]
        return min(found)[2] if found else None

    def _exchange(self, vcpu: int, far: int) -> int | None:
        """Give another mover with whom to change targets, so that both together are nearer."""
        board, places = self._board, self._places
        mine = places.of[vcpu]
        best: tuple[int, int] | None = None
        near = itertools.chain.from_iterable(self._around.rings(vcpu, far))
        there = (other for cpu in near for other in self._movers[cpu])
        for other in itertools.islice(there, EXCHANGES_MAX):
            theirs = places.of[other]
            change = board.loads[other] - board.loads[vcpu]
            if not (
                places.least <= places.levels[mine] + change <= places.most
                and places.least <= places.levels[theirs] - change <= places.most
            ):
                continue
            then = cost(board, vcpu, theirs) + cost(board, other, mine)
            if then >= far + self._costs[other] or (best is not None and (then, other) >= best):
                continue
            if theirs in {mine, board.home[vcpu]} or mine == board.home[other]:
                continue
            if _is_weaker(board, mine, theirs) or _is_weaker(board, theirs, mine):
                continue
            may = board.allowed[vcpu] >> theirs & 1 and board.allowed[other] >> mine & 1
            if not may or places.joins(vcpu, theirs) or places.joins(other, mine):
                continue
            best = then, other
            if then <= 2 * CACHE:
                break  # near enough for both
        return None if best is None else best[1]

    def _put(self, vcpu: int, target: int) -> None:
        self._movers[self._places.of[vcpu]].remove(vcpu)
        self._movers[target].append(vcpu)
        self._costs[vcpu] = cost(self._board, vcpu, target)
        self._places.put(vcpu, target)
