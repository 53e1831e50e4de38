"""A host in memory where everything fails now and then, and the account of what is true on it.

Rule: seeded and exactly repeatable. It is a `Hypervisor`, and all else that changes the host.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vcpusched.act.comparison import YOUNG_NS
from vcpusched.act.ledger import Entry
from vcpusched.act.ledger_file import parse
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.hypervisor import BusyError, ConnectionLostError, HypervisorError, VanishedError
from vcpusched.model import Cpu, CpuSet, DomainUuid, Topology, VcpuId
from vcpusched.sample import Definition, DomainReading, Origin, Sample, Unread, VcpuReading

CPUS: Final = 8
GUESTS_MAX: Final = 16
PERIOD_NS: Final = 3_000_000_000
ONLINE: Final = CpuSet.of(range(CPUS))
ARRIVALS: Final = 0.06
RESTLESS: Final = 0.03
"""How likely a guest starts, and a vCPU changes what it wants, in a period."""


class Killed(BaseException):
    """The process is killed here."""


@dataclass
class Vcpu:
    """One vCPU as it really is; `own` is what its affinity would be without us.

    `held` since it was `touched`, pinned by an administrator, and then sampled. The service knows
    it (`known`) once it has seen it for some seconds, the first time at `seen_ns`, or has it in its
    file. For `unknown` cycles it has been unknown whether a pin was made.
    """

    allowed: CpuSet
    affinity: CpuSet
    own: CpuSet
    booked: CpuSet
    want: float
    run_ns: int = 0
    touched: bool = False
    held: bool = False
    known: bool = False
    seen_ns: int | None = None
    unknown: int = 0


@dataclass
class Guest:
    """One guest; `origin` is the mark that it carries."""

    name: str
    domain_id: int
    vcpus: list[Vcpu] = field(default_factory=list)
    origin: dict[int, Origin] = field(default_factory=dict)


class World:
    """The host, as a `Hypervisor`, and all else that changes it."""

    def __init__(self, seed: int, path: Path) -> None:
        self._path = path
        self.chance = random.Random(seed)  # noqa: S311  chance that can be repeated
        self.guests: dict[DomainUuid, Guest] = {}
        self.now_ns = PERIOD_NS
        self.quiet = False
        self.seen: Counter[str] = Counter()
        self.broken: list[str] = []
        self._last_id = 0
        self._names = 0

    def happens(self, what: str, per_thousand: float) -> bool:
        """Draw whether something goes wrong now."""
        if self.quiet or self.chance.random() * 1000 >= 3 * per_thousand:
            return False
        self.seen[what] += 1
        return True

    # What we ask of it.

    def sample(self) -> Sample:
        """Read the host."""
        if self.happens("connection lost while sampling", 2):
            raise ConnectionLostError("gone")
        domains, unread = [], {}
        for uuid, guest in self.guests.items():
            if self.happens("a guest could not be read", 1):
                unread[uuid] = Unread(guest.name, "does not answer")
                continue
            for vcpu in guest.vcpus:
                vcpu.held = vcpu.held or vcpu.touched
                vcpu.seen_ns = self.now_ns if vcpu.seen_ns is None else vcpu.seen_ns
                vcpu.known = vcpu.known or self.now_ns - vcpu.seen_ns >= YOUNG_NS
            domains.append(self._reading(uuid, guest))
        return Sample(Topology(tuple(Cpu(cpu) for cpu in ONLINE)), tuple(domains), unread=unread)

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read a definition, and libvirt's books."""
        guest = self._guest(uuid)
        if self.happens("a definition could not be read", 1):
            raise HypervisorError("timeout")
        return _definition(guest)

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Read what a vCPU may use."""
        return self._guest(vcpu.uuid, vcpu.vcpu).vcpus[vcpu.vcpu].affinity

    def mark(self, uuid: DomainUuid, _domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Write a mark into a guest."""
        self.step()
        guest = self._guest(uuid)
        if self.happens("a mark was refused", 5):
            raise BusyError("busy")
        guest.origin = dict(origin)
        self.step()

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Set an affinity."""
        guest = self._guest(vcpu.uuid, vcpu.vcpu)
        one = guest.vcpus[vcpu.vcpu]
        self.step()
        if not cpus.is_within(one.allowed):
            self.broken.append(f"{guest.name} was pinned to {cpus}, outside {one.allowed}")
        if one.held and cpus != one.own:
            self.broken.append(f"{guest.name} was pinned to {cpus}, though it is held")
        if self.happens("a pin was refused, the guest being busy", 10):
            raise BusyError("busy")
        if self.happens("a pin failed", 5):
            raise HypervisorError("no")
        if self.happens("connection lost before a pin", 3):
            raise ConnectionLostError("gone")
        one.affinity = one.booked = cpus
        if self.happens("connection lost after a pin", 3):
            raise ConnectionLostError("gone")
        self.step()

    def step(self) -> None:
        """Be killed, or not."""
        if self.happens("killed between two steps", 4):
            raise Killed

    # What others do.

    def pass_time(self) -> None:
        """Let a period pass."""
        self.now_ns += PERIOD_NS
        for guest in self.guests.values():
            for vcpu in guest.vcpus:
                vcpu.run_ns += round(vcpu.want * PERIOD_NS)
                if self.chance.random() < RESTLESS:
                    vcpu.want = self._want()

    def meddle(self) -> None:
        """Have guests start and end, and administrators and the kernel change affinities."""
        if len(self.guests) < GUESTS_MAX and self.chance.random() < ARRIVALS:
            self._names += 1
            self._start(DomainUuid(f"{self._names:032x}"), f"guest{self._names}")
            self.seen["a guest started"] += 1
        if not self.guests:
            return
        uuid = self.chance.choice(sorted(self.guests))
        guest = self.guests[uuid]
        if self.happens("a guest ended", 8):
            del self.guests[uuid]
            return
        if self.happens("a guest started anew under its UUID", 5):
            self._start(uuid, guest.name)
            return
        number = self.chance.randrange(len(guest.vcpus))
        vcpu = guest.vcpus[number]
        if self.happens("an administrator pinned a vCPU", 5):
            self._by_hand(uuid, number, CpuSet.of([self.chance.choice(list(vcpu.allowed))]))
        elif self.happens("an administrator gave a vCPU several pCPUs", 3):
            self._by_hand(uuid, number, vcpu.allowed)
        elif self.happens("the kernel reset a pin", 3) and vcpu.allowed == ONLINE:
            # A pin that is not ours it would have reset without us, too.
            vcpu.own = ONLINE if vcpu.own == vcpu.affinity else vcpu.own
            vcpu.affinity = ONLINE

    def give_new_ids(self) -> None:
        """Restart libvirtd, which may count its guests anew."""
        for guest in self.guests.values():
            self._last_id += 1
            guest.domain_id = self._last_id

    def forget(self) -> None:
        """Have the service die: a pin to one pCPU that is found at its start is placement.

        Of what it noticed it knows no more than what is in the file.
        """
        kept = self.kept()
        for uuid, guest in self.guests.items():
            records = kept[uuid].records if uuid in kept else {}
            for number, vcpu in enumerate(guest.vcpus):
                vcpu.known, vcpu.seen_ns = number in records, None
                if not vcpu.known:
                    vcpu.touched = vcpu.held = False

    def kept(self) -> Mapping[DomainUuid, Entry]:
        """Return what is in the file."""
        return parse(self._path.read_text()).entries if self._path.exists() else {}

    def end(self, reconciler: Reconciler) -> None:
        """Have all pins restored, and note which were not."""
        reconciler.restore()
        for guest in self.guests.values():
            if guest.origin:
                self.broken.append(f"{guest.name} still carries a mark")
            for number, vcpu in enumerate(guest.vcpus):
                if vcpu.affinity not in {vcpu.own, ONLINE}:
                    self.broken.append(
                        f"{guest.name}: vCPU {number} is left on {vcpu.affinity}, was {vcpu.own}"
                    )

    def _by_hand(self, uuid: DomainUuid, number: int, cpus: CpuSet) -> None:
        """Set an affinity as an administrator, unless it would look like a pin of ours.

        That is so for what the file says we left the vCPU at, while the kernel has reset it, and
        for what we asked for, while no sample has shown whether we got it. `check` finds where
        either lasts.
        """
        vcpu, entry = self.guests[uuid].vcpus[number], self.kept().get(uuid)
        record = entry.records.get(number) if entry is not None else None
        if record is not None and record.is_ours and cpus in {record.affinity, record.pending}:
            self.seen["of which to where we might have put it: left out"] += 1
        elif cpus != vcpu.affinity:
            vcpu.affinity = vcpu.own = vcpu.booked = cpus
            vcpu.touched, vcpu.held = vcpu.known and len(cpus) == 1 < len(vcpu.allowed), False

    def _guest(self, uuid: DomainUuid, vcpu: int = 0) -> Guest:
        guest = self.guests.get(uuid)
        if guest is None or vcpu >= len(guest.vcpus):
            raise VanishedError("ended")
        return guest

    def _start(self, uuid: DomainUuid, name: str) -> None:
        self._last_id += 1
        half = CpuSet.of(range(CPUS // 2))
        allowed = self.chance.choice([ONLINE, ONLINE, half])
        vcpus = []
        for _ in range(self.chance.choice([1, 1, 2, 4])):
            first = CpuSet.of([self.chance.choice(list(allowed))])
            cpus = self.chance.choice([first, first, allowed])
            vcpus.append(Vcpu(allowed, cpus, cpus, cpus, self._want()))
        self.guests[uuid] = Guest(name, self._last_id, vcpus)

    def _want(self) -> float:
        return self.chance.choice([0.02, 0.1, 0.3, 0.6])

    def _reading(self, uuid: DomainUuid, guest: Guest) -> DomainReading:
        return DomainReading(
            uuid=uuid,
            domain_id=guest.domain_id,
            name=guest.name,
            at_ns=self.now_ns,
            vcpus=tuple(
                VcpuReading(number, vcpu.run_ns, vcpu.affinity, next(iter(vcpu.affinity)))
                for number, vcpu in enumerate(guest.vcpus)
            ),
            definition=_definition(guest),
        )


def _definition(guest: Guest) -> Definition:
    vcpus = dict(enumerate(guest.vcpus))
    return Definition(
        {number: vcpu.allowed for number, vcpu in vcpus.items()},
        booked={number: vcpu.booked for number, vcpu in vcpus.items()},
        origin=dict(guest.origin),
    )
