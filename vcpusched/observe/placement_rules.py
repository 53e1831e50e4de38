"""The rules of placement: which pCPUs are managed, which vCPUs may be moved on them, and why not.

Rule: pure; judges a `Sample` by what the administrator wants and what definitions say. It knows no
loads and plans nothing.

Problem: much has a say in where a vCPU may be (the administrator's settings, the guest's definition
    and its metadata, the kernel's command line, the cpuset of the guests' groups, managers that
    keep a pool), and the question "why was this not moved?" needs one answer.
Terms: managed pCPUs are those that are balanced at all: of those that no guest's cpuset has, none
    can be. Isolated are those that the kernel keeps
    for what is pinned there (isolcpus=), tickless those that are meant for one thread (nohz_full=),
    on which it and libvirt put others all the same. Reserved ones are managed, but nobody's target
    unless the vCPU's own definition names them: these two, those of realtime vCPUs and their
    guests, emulator and I/O threads among these, and those that a definition dedicates to a single
    vCPU. A running guest reserves what it runs with, whatever its definition says for the next
    boot. A pool is a live affinity of
    several pCPUs that differs from what the definition says: a manager keeps it, so it is obeyed.
    Where vCPUs are pinned to sets of pCPUs, such a set is no pool but a place like a single one.
    Near a vCPU whose memory is strictly on some NUMA nodes are the pCPUs of these nodes; near every
    other all pCPUs are.
Order: the guest's metadata outranks the administrator's lists of domains, since it is the finer
    word; a wish that is not understood holds the guest, since the next likely meaning of a typo in
    "hold" is "hold". A definition's mask is never left, nor what is near, nor the
    cpuset; who is outside of any may come in.
Properties: a guest that cannot be read keeps what is reserved for it. No answer depends on the
    order of domains or vCPUs.
"""

import enum
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final, NamedTuple, Self

from vcpusched.model import ALL_CPUS, NO_CPUS, Cpu, CpuSet, DomainUuid, Granularity, sets
from vcpusched.sample import Definition, DomainReading, Sample, VcpuReading
from vcpusched.text import printable


class Wish(enum.StrEnum):
    """What a guest's metadata may ask for.

    `SPREAD`: to be balanced, with its vCPUs on different cores.
    """

    BALANCE = "balance"
    HOLD = "hold"
    SPREAD = "spread"


@dataclass(frozen=True, slots=True)
class PlacementRules:
    """What the administrator wants of pCPUs and guests.

    `cpus` is a list of the pCPUs to manage, with the words all and isolated. Guests are moved whose
    name matches a glob of `include_domains` and none of `exclude_domains`. `granularity` says what
    vCPUs are pinned to.
    """

    cpus: str = "all,^isolated"
    include_domains: tuple[str, ...] = ("*",)
    exclude_domains: tuple[str, ...] = ()
    granularity: Granularity = Granularity.CPU

    def managed(self, online: CpuSet, isolated: CpuSet) -> CpuSet:
        """Return those of the online pCPUs that are managed. Raises ValueError for no list."""
        return online & CpuSet.parse(self.cpus, all=online, isolated=isolated)


DEFAULT_RULES: Final = PlacementRules()


@functools.lru_cache(maxsize=16_384)  # asked for each vCPU in each cycle
def _why_excluded(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    # Domain names are case sensitive, on every system.
    if not any(fnmatchcase(name, glob) for glob in include):
        return "not in include_domains"
    for glob in exclude:
        if fnmatchcase(name, glob):
            return f'excluded by "{printable(glob)}" in exclude_domains'
    return ""


def why_unclear(definition: Definition) -> str:
    """Return what is wrong with what a domain asks for; nothing when it is understood."""
    wish = definition.wish
    if wish is None or wish in tuple(Wish):
        return ""
    known = ", ".join(Wish)
    if not wish:
        return f"its metadata says no policy, which must be one of {known}"
    return f'its metadata says policy="{printable(wish, 40)}", which is none of {known}'


class Eligibility(NamedTuple):
    """Whether a vCPU may be moved, and where to.

    `why` says why it is `fixed`; of one that is not, what asks for it to be moved or narrows where
    to, if anything.
    """

    allowed: CpuSet
    fixed: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """The rules as they apply to one sample; `reserved_by` is what each domain reserves.

    `cpus` are the managed pCPUs, `units` the sets of several that vCPUs are pinned to, `nodes` the
    pCPUs of each NUMA node that is known, `left_alone` those that are online and not managed, by
    the reason. It `knows_pins` where the sample says which affinities are pins of ours.
    """

    rules: PlacementRules
    managed: CpuSet
    cpus: tuple[Cpu, ...]
    isolated: CpuSet
    reserved_by: Mapping[DomainUuid, CpuSet] = field(default_factory=dict)
    reserved: CpuSet = NO_CPUS
    units: frozenset[CpuSet] = frozenset()
    nodes: Mapping[int, CpuSet] = field(default_factory=dict)
    left_alone: Mapping[str, CpuSet] = field(default_factory=dict)
    knows_pins: bool = False

    @classmethod
    def of(cls, rules: PlacementRules, sample: Sample, before: "Placement | None" = None) -> Self:
        """Apply the rules to a sample; `before` is what came of the sample before."""
        online, spared = sample.online, sample.isolated | sample.tickless
        cpuset = NO_CPUS
        for domain in sample.domains:
            if domain.definition.is_cpuset_known:
                cpuset |= domain.definition.cpuset & online
        cpuset = cpuset or online
        wanted = rules.managed(online, spared)
        managed = wanted & cpuset
        kept = before.reserved_by if before is not None else {}
        reserved_by = {uuid: kept[uuid] for uuid in sample.unread if uuid in kept}
        for domain in sample.domains:
            reserved = _reserved(domain, managed)
            if reserved:
                reserved_by[domain.uuid] = reserved
        everywhere = spared & managed
        for reserved in reserved_by.values():
            everywhere |= reserved & managed
        cpus = tuple(
            replace(cpu, isolated=True) if cpu.id in sample.isolated else cpu
            for cpu in sample.topology.cpus
            if cpu.id in managed
        )
        units = frozenset(unit for unit in sets(cpus, rules.granularity) if len(unit) > 1)
        nodes: dict[int, CpuSet] = {}
        for cpu in sample.topology.cpus:
            if cpu.node is not None:
                nodes[cpu.node] = nodes.get(cpu.node, NO_CPUS) | CpuSet(1 << cpu.id)
        outside, isolated = online - cpuset, rules.managed(online, NO_CPUS) - wanted
        left_alone = {
            "outside the guests' cpuset": outside,
            "isolated by the kernel": isolated - outside,
            "not in cpus": online - wanted - isolated - outside,
        }
        return cls(
            rules,
            managed,
            cpus,
            sample.isolated,
            reserved_by,
            everywhere,
            units,
            nodes,
            {why: cpus for why, cpus in left_alone.items() if cpus},
            sample.is_reconciled,
        )

    def binds(self, affinity: CpuSet) -> bool:
        """Return whether an affinity is one pCPU, or within one of the sets that are pinned to."""
        return len(affinity) == 1 or any(affinity.is_within(unit) for unit in self.units)

    def eligibility(self, domain: DomainReading, reading: VcpuReading) -> Eligibility:
        """Return whether one vCPU may be moved, and where to."""
        definition, affinity = domain.definition, reading.affinity
        mask, reach = self._reach(definition, reading.vcpu)
        targets = self._targets(definition, reading.vcpu, reach)
        why = reading.held or self._why_held(domain.name, definition, reading.vcpu, mask, reach)
        ours = reading.ours or (affinity in self.units and not self.knows_pins)
        if not why and (len(affinity) == 1 or ours):
            why = self._why_bound(definition, reading, mask, reach, targets)
        elif not why:
            # What is not pinned libvirt keeps off isolated pCPUs (since 10.4).
            if affinity & self.managed not in {mask, mask - self.isolated}:
                pool = f"someone else keeps it on pCPUs {affinity}"
                return Eligibility(affinity, fixed=True, why=pool)
            why = "" if targets else "all pCPUs that it may use are reserved"
        if why:
            return Eligibility(targets, fixed=True, why=why)
        asked = [f"its metadata asks for {definition.wish}"] if definition.wish is not None else []
        if not self.managed.is_within(self._near(definition, reading.vcpu)):
            asked.append(f"its memory must be on {_nodes_of(definition, reading.vcpu)}")
        return Eligibility(targets, why=", ".join(asked))

    def _why_held(
        self, name: str, definition: Definition, vcpu: int, mask: CpuSet, reach: CpuSet
    ) -> str:
        """Return why a vCPU may not be moved, wherever it is; nothing when it may."""
        if not definition.allowed:
            return "its definition could not be read"
        if definition.wish == Wish.HOLD:
            return "held by its metadata"
        why = why_unclear(definition)
        if definition.wish is None:
            why = _why_excluded(name, self.rules.include_domains, self.rules.exclude_domains)
        if why:
            return why
        if vcpu in definition.realtime:
            return "a realtime vCPU"
        if vcpu not in definition.allowed:
            return "its definition does not name it"
        return "" if reach else self._why_nowhere(definition, vcpu, mask)

    def _why_nowhere(self, definition: Definition, vcpu: int, mask: CpuSet) -> str:
        """Return why its definition leaves a vCPU no managed pCPU that is near."""
        if not mask:
            return f"{_said(definition, vcpu)} allows no managed pCPU"
        there = _nodes_of(definition, vcpu)
        if not self._near(definition, vcpu):
            return f"which pCPUs are on {there} is not known"
        said = _said(definition, vcpu)
        return f"{said} allows no managed pCPU of {there}, where its memory must be"

    def _why_bound(
        self,
        definition: Definition,
        reading: VcpuReading,
        mask: CpuSet,
        reach: CpuSet,
        targets: CpuSet,
    ) -> str:
        """Return why a vCPU must stay where it is; nothing when that may change."""
        affinity = reading.affinity
        if not affinity.is_within(self.managed):
            return f"it is on pCPU {affinity}, which is not managed"
        if not targets.is_within(affinity):
            return ""
        if mask.is_within(affinity):
            return f"{_said(definition, reading.vcpu)} allows no other managed pCPU"
        if reach.is_within(affinity):
            said, there = _said(definition, reading.vcpu), _nodes_of(definition, reading.vcpu)
            return f"{said} allows no other managed pCPU of {there}, where its memory must be"
        return "all other pCPUs are reserved"

    def objection(self, name: str, definition: Definition, vcpu: int, to_cpus: CpuSet) -> str:
        """Return what speaks against a move after all, by a definition read anew."""
        mask, reach = self._reach(definition, vcpu)
        why = self._why_held(name, definition, vcpu, mask, reach)
        if not why and not to_cpus.is_within(self._targets(definition, vcpu, reach)):
            return "the guest's definition does not allow this pCPU any more"
        return why

    def _targets(self, definition: Definition, vcpu: int, reach: CpuSet) -> CpuSet:
        # A vCPU goes to a reserved pCPU only if its definition names that, not if it names none.
        names_none = self.reserved and definition.allowed.get(vcpu) == ALL_CPUS
        return reach - self.reserved if names_none else reach

    def _reach(self, definition: Definition, vcpu: int) -> tuple[CpuSet, CpuSet]:
        """Return the managed pCPUs that a vCPU may use, and those of them that are near it."""
        mask = definition.allowed.get(vcpu, NO_CPUS) & self.managed & definition.cpuset
        return mask, mask & self._near(definition, vcpu)

    def _near(self, definition: Definition, vcpu: int) -> CpuSet:
        """Return the pCPUs near a vCPU; none where they are not known."""
        nodes = definition.memory_strict.get(vcpu)
        if nodes is None:
            return ALL_CPUS
        if not nodes:
            # On one node it does not matter which ones were chosen.
            return ALL_CPUS if len(self.nodes) == 1 else NO_CPUS
        near = NO_CPUS
        for node in nodes:
            near |= self.nodes.get(node, NO_CPUS)
        return near


def _said(definition: Definition, vcpu: int) -> str:
    """Return what bounds a vCPU."""
    is_cut = bool(definition.allowed[vcpu] - definition.cpuset)
    return "its definition, cut to its cpuset," if is_cut else "its definition"


def _nodes_of(definition: Definition, vcpu: int) -> str:
    nodes = definition.memory_strict[vcpu]
    if not nodes:
        return "the nodes that numad chose for its memory"
    # A list of nodes reads like a list of pCPUs.
    return f"node{'s' if len(nodes) > 1 else ''} {CpuSet.of(nodes)}"


def _reserved(domain: DomainReading, managed: CpuSet) -> CpuSet:
    """Return the pCPUs that are no others' for this domain's sake."""
    definition = domain.definition
    given: dict[int, set[CpuSet]] = {}
    dedicated: set[int] = set()
    for vcpu, stated in definition.allowed.items():
        masks = (stated, definition.began.get(vcpu, stated))
        # Bits, not sets: this is asked for each vCPU in each cycle.
        said = [mask for mask in masks if mask.bits != ALL_CPUS.bits]
        if not said:
            continue
        # What it runs with until its next boot; before a pin of ours, unless that is stated.
        booked = definition.booked.get(vcpu, stated)
        given[vcpu] = {definition.before_us(vcpu, booked)} | ({booked} if booked in said else set())
        if any(len(mask) == 1 for mask in said):
            dedicated.add(vcpu)
    if not (dedicated or definition.realtime):
        return NO_CPUS
    # Dedicated: a pCPU that the definition gives to just one vCPU, and that vCPU nothing else.
    single = Counter(mask for vcpu in dedicated for mask in given[vcpu] if len(mask) == 1)
    reserved = CpuSet.of(cpu for mask, vcpus in single.items() if vcpus == 1 for cpu in mask)
    if definition.realtime:
        running = (
            reading.affinity for reading in domain.vcpus if reading.vcpu in definition.realtime
        )
        stated_masks = (mask for masks in given.values() for mask in masks)
        for mask in (*stated_masks, *running, *definition.helper_pins):
            # One that may be anywhere has no place of its own.
            if not managed.is_within(mask):
                reserved |= mask
    return reserved
