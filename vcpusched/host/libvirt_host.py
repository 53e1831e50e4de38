"""The `Hypervisor` over libvirt: all XML, pCPU maps and error codes stop here.

Rule: with `connection` the only import of `libvirt`; nothing that libvirt made leaves this module.
Every call may block, so all of it belongs into a worker thread.

What a cycle costs, for any number of guests: one call to libvirtd, for the list of guests; another
when the kernel's list of online pCPUs has changed, for the map of those that libvirt can pin to.
What vCPUs do and where they may run the kernel says (`threads`). A definition costs 3 more calls
when a guest is first seen and every 60 s; a plan costs 3 for each guest it touches, and 5 for each
pin (find the guest, ask twice whether it is busy, and two in `pinVcpuFlags`). The mark in a guest's
metadata, before a pin that it does not name yet, costs 4.

A guest whose threads cannot be read costs three calls more a cycle, all in `virDomain.vcpus()`: the
binding asks for the pCPU map and the guest's size before it reads the vCPUs. None of them begins a
job on a guest or talks to its QEMU, so none waits for a migration and none disturbs a guest. The
bulk statistics call would, with QEMU 7.1 to 8.0, and reports neither the real affinity nor the pCPU
last used.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Final

import libvirt

from vcpusched.host import cgroups, libvirt_xml
from vcpusched.host import cpus as host_cpus
from vcpusched.host.connection import VANISHED, connect, translate
from vcpusched.host.definitions import Definitions, FirstSeen, Key
from vcpusched.host.files import read_bytes
from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    HypervisorError,
    VanishedError,
)
from vcpusched.host.processes import user_of_daemon
from vcpusched.host.threads import Sweep, Threads
from vcpusched.model import CpuSet, DomainUuid, Topology, VcpuId
from vcpusched.sample import Definition, DomainReading, Origin, Sample, Unread, VcpuReading

ORIGIN_PREFIX: Final = "vcpusched-origin"
"""How the namespace of our mark is called in domain XML; it says nothing."""

_ONLINE: Final = "/sys/devices/system/cpu/online"

BRIEF_JOB_MS: Final = 1000
"""An operation on a domain younger than this is one of statistics, and over in a moment."""


class LibvirtHost:
    """One connection to the libvirt of this host; when it is lost, open another.

    To open one blocks for as long as libvirtd does not answer, and raises HypervisorError.
    `first_seen` is what `Definitions` remember over connections.
    """

    def __init__(
        self, uri: str, *, read_only: bool = False, first_seen: FirstSeen | None = None
    ) -> None:
        self._connection = connect(uri, read_only=read_only)
        self._domains: dict[DomainUuid, Any] = {}
        self._online_list: bytes | None = None
        self._map_length = 0
        self._online = self._offline = CpuSet()
        self._topology = Topology(())
        self._is_settled = False
        seen = first_seen if first_seen is not None else {}
        self._definitions = Definitions(seen, cgroups.usual_shares())
        self._threads = Threads()
        self._user = user_of_daemon(uri)

    def is_alive(self) -> bool:
        """Return whether the connection still stands, as far as keepalive knows; asks nobody."""
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def close(self) -> None:
        """Let go of the connection and all that holds it."""
        self._domains.clear()
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()

    def sample(self) -> Sample:
        """Read pCPUs and all running domains.

        They are read anew when a pCPU came or went meanwhile: an affinity does not say which of its
        pCPUs are offline, so it would pass for another one that someone else has set.
        """
        while True:
            self._read_online()
            sample = self._sampled()
            if read_bytes(_ONLINE) == self._online_list:
                return sample

    def _sampled(self) -> Sample:
        if not self._is_settled:
            before, self._topology = self._topology, host_cpus.topology(self._online)
            self._is_settled = before == self._topology
        with self._translated():
            listed = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        self._domains = {DomainUuid(domain.UUIDString()): domain for domain in listed}
        running = {(uuid, domain.ID()): domain for uuid, domain in self._domains.items()}
        self._learn_definitions(running)
        since_boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._threads.find({key: self._users(key) for key in running}, since_boot_ns)
        for key in running:
            if not self._definitions.of(key).is_cpuset_known:
                self._bound(key)
        # All in one sweep, which libvirtd does not interrupt.
        sweeps = {key: self._threads.read(key) for key in running}
        domains: list[DomainReading] = []
        unread: dict[DomainUuid, Unread] = {}
        by_libvirt: defaultdict[str, list[str]] = defaultdict(list)
        for key, domain in running.items():
            name = str(domain.name())
            try:
                sweep = sweeps[key] or self._read(domain)
            except VanishedError:
                continue
            except ConnectionLostError:
                raise
            except HypervisorError as error:
                unread[key[0]] = Unread(name, str(error))
                continue
            if sweep is not sweeps[key] and (why := self._threads.why_not(key)):
                by_libvirt[why].append(name)
            definition = self._definitions.of(key)
            domains.append(DomainReading(*key, name, sweep.at_ns, sweep.vcpus, definition))
        return Sample(
            topology=self._topology,
            domains=tuple(domains),
            unread=unread,
            busy=host_cpus.busy(),
            isolated=host_cpus.isolated(),
            tickless=host_cpus.tickless(),
            by_libvirt={why: tuple(names) for why, names in by_libvirt.items()},
            offline=self._offline,
        )

    def _learn_definitions(self, running: Mapping[Key, Any]) -> None:
        """Read the definitions that are due; one that cannot be read stays as it is known.

        It is not worth losing the loads for: from 11.0 on libvirt may wait for a busy guest here.
        """
        self._definitions.forget_all_but(running.keys())
        now_ns = time.monotonic_ns()
        for key in running:
            if not self._definitions.is_due(key, now_ns):
                continue
            try:
                with self._translated():
                    self._define(key, running[key])
            except ConnectionLostError:
                raise
            except HypervisorError:
                # Its vCPUs count, and stay where they are while nothing is known.
                self._definitions.postpone(key, time.monotonic_ns())

    def _bound(self, key: Key) -> None:
        """Add to a guest's definition what the kernel says of its groups, once they are known."""
        groups = self._threads.group(key)
        if groups is not None:
            self._definitions.bound(key, cgroups.limits(groups))

    def _users(self, key: Key) -> set[int]:
        """Return the users that may run a guest's QEMU."""
        return {user for user in (self._user, self._definitions.user_of(key)) if user is not None}

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""
        domain = self._running(uuid)
        with self._translated():
            key = uuid, domain.ID()
            self._define(key, domain)
        self._bound(key)
        return self._definitions.of(key)

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Read which pCPUs a vCPU may use right now: the real affinity of its thread."""
        found = self._threads.affinity((vcpu.uuid, vcpu.domain_id), vcpu.vcpu)
        if found is not None:
            return found
        for reading in self._read(self._running(vcpu.uuid)).vcpus:
            if reading.vcpu == vcpu.vcpu:
                return reading.affinity
        raise VanishedError("the vCPU was taken away")

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Set the live affinity of one vCPU."""
        cpu_map = libvirt_xml.to_map(cpus, self._map_length)
        self._change(
            vcpu.uuid,
            vcpu.domain_id,
            lambda domain: domain.pinVcpuFlags(vcpu.vcpu, cpu_map, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        )

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Write originals and our pins into its live metadata, or take the mark away.

        Like a pin this takes the domain's job, and is refused to those that may not pin.
        """
        xml = libvirt_xml.origin_xml(origin) if origin else None
        # What is to be taken away may not be there.
        with contextlib.suppress(*[] if origin else [VanishedError]):
            self._change(
                uuid,
                domain_id,
                lambda domain: domain.setMetadata(
                    libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                    xml,
                    ORIGIN_PREFIX,
                    libvirt_xml.ORIGIN,
                    libvirt.VIR_DOMAIN_AFFECT_LIVE,
                ),
            )
        self._definitions.marked((uuid, domain_id), origin)

    def _change(self, uuid: DomainUuid, domain_id: int, change: Callable[[Any], object]) -> None:
        """Change a running domain, unless that would block."""
        with self._translated():
            domain = self._connection.lookupByUUIDString(uuid)
        if domain.ID() != domain_id:
            raise VanishedError("the domain was started anew")
        with self._translated(domain):
            _refuse_busy(domain)
            change(domain)

    @contextlib.contextmanager
    def _translated(
        self,
        domain: Any = None,  # noqa: ANN401
        refusals: Container[int] = (libvirt.VIR_ERR_OPERATION_INVALID,),
    ) -> Iterator[None]:
        """Raise in our words what libvirt raises.

        Of a domain that still runs, `refusals` say that it cannot do this (as single-threaded
        emulation), not that it vanished.
        """
        try:
            yield
        except libvirt.libvirtError as error:
            found = translate(error, alive=self.is_alive())
            refused = domain is not None and error.get_error_code() in refusals
            with contextlib.suppress(libvirt.libvirtError):
                if refused and domain.isActive():
                    found = HypervisorError(str(found))
            raise found from None

    def _running(self, uuid: DomainUuid) -> Any:  # noqa: ANN401
        if uuid not in self._domains:
            raise VanishedError("the domain is not running any more")
        return self._domains[uuid]

    def _read_online(self) -> None:
        """Ask for the map of pCPUs, unless the kernel has the same ones online as before."""
        listed = read_bytes(_ONLINE)
        if listed is None or listed != self._online_list:
            with self._translated():
                self._map_length, flags, _count = self._connection.getCPUMap()
            self._online = libvirt_xml.from_map(flags)
            self._offline = libvirt_xml.from_map([not flag for flag in flags])
            self._online_list, self._is_settled = listed, False

    def _read(self, domain: Any) -> Sweep:  # noqa: ANN401
        """Ask libvirt what it knows of the vCPUs of a guest whose threads cannot be read."""
        with self._translated(domain, VANISHED):
            at_ns = time.monotonic_ns()
            infos, maps = domain.vcpus()
        return Sweep(at_ns, parse_vcpus(infos, maps))

    def _define(self, key: Key, domain: Any) -> None:  # noqa: ANN401
        live = domain.XMLDesc(0)
        inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
        stated = domain.XMLDesc(inactive) if domain.isPersistent() else None
        self._definitions.learn(key, live, stated, time.monotonic_ns())


def parse_vcpus(
    infos: Sequence[tuple[int, int, int, int]], maps: Sequence[Sequence[bool]]
) -> tuple[VcpuReading, ...]:
    """Translate the answer of `virDomain.vcpus()`.

    Row i of the maps belongs to `infos[i]`, whatever number that vCPU has; they are sparse where
    vCPUs were added or removed. CPU time is in ns, counted by the kernel in steps of 10 ms. The
    binding makes as many rows as the domain had vCPUs a call before: one that went away meanwhile
    is a row of zeros with an empty map, and left out.
    """
    return tuple(
        VcpuReading(
            vcpu=number,
            run_ns=run_ns,
            affinity=libvirt_xml.from_map(flags),
            on=on if on >= 0 else None,
        )
        for (number, _state, run_ns, on), flags in zip(infos, maps, strict=True)
        if any(flags)
    )


def _refuse_busy(domain: Any) -> None:  # noqa: ANN401
    """Raise BusyError where a pin would block for 30 s: behind a hung monitor or during a job.

    The first question takes no job and is answered even when the monitor hangs, but knows nothing
    of migrations and saves; the second knows them, and would itself wait behind a hung monitor.
    """
    state, _details, since_ms = domain.controlInfo()
    if state == libvirt.VIR_DOMAIN_CONTROL_ERROR:
        raise BusyError("the domain's monitor does not answer")
    if state != libvirt.VIR_DOMAIN_CONTROL_OK:
        if since_ms > BRIEF_JOB_MS:
            raise BusyError("the domain is busy with another operation")
    elif domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        raise BusyError("the domain is being migrated, saved or the like")
