"""The `Hypervisor` over libvirt: all XML, pCPU maps and error codes stop here.

Rule: the only import of `libvirt`; nothing that libvirt made leaves this module.
Every call may block, so all of it belongs into a worker thread.

What a cycle costs, for D running domains: 2 + 3 D calls to libvirtd. One for the pCPUs that are
online, one for the list of domains, and three in `virDomain.vcpus()` (the binding asks for the
pCPU map and the domain's size before it reads the vCPUs). None of them begins a job on a domain or
talks to its QEMU, so none waits for a migration and none disturbs a guest; the bulk statistics call
would be cheaper but interrupts every vCPU with QEMU 7.1 to 8.0, and tells neither the real
affinity nor the pCPU last used. How long vCPUs waited it takes from /proc, as this does by itself
(`threads`): that costs libvirtd nothing. A definition costs 3 more calls when a domain is first
seen and every 60 s; a plan costs 3 for each domain it touches, and 5 for each pin (find the domain,
ask twice whether it is busy, and two in `pinVcpuFlags`). The mark in a domain's metadata, before
its first pin, costs 4. The topology costs one, on a connection of its own, whenever other pCPUs are
online than before, since there is no event for that.
"""

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import libvirt

from vcpusched.host import cpus as host_cpus
from vcpusched.host import libvirt_xml
from vcpusched.host.cgroups import Quotas
from vcpusched.host.hypervisor import (
    ERRORS,
    LOST_CODES,
    BusyError,
    ConnectionLostError,
    HypervisorError,
    PermissionDeniedError,
    VanishedError,
)
from vcpusched.host.threads import Threads
from vcpusched.model import (
    PPM,
    CpuSet,
    Definition,
    DomainReading,
    DomainUuid,
    Sample,
    Topology,
    Unread,
    VcpuId,
    VcpuReading,
)

FirstSeen = dict[tuple[DomainUuid, int], Definition]
"""The live definition of each run of a transient domain as it was when it was first seen."""

KEEPALIVE_INTERVAL_S: Final = 2
KEEPALIVE_COUNT: Final = 3
"""A libvirtd that stops answering fails every call after (count + 1) * interval = 8 s."""

EVENT_LOOP_PAUSE_S: Final = 1

ORIGIN_PREFIX: Final = "vcpusched-origin"
"""How the namespace of our mark is called in domain XML; it says nothing."""

BRIEF_JOB_MS: Final = 1000
"""An operation on a domain younger than this is somebody's statistics, and over in a moment."""

DEFINITION_AGE_MAX_NS: Final = 60 * 1_000_000_000
"""How long a definition is trusted: a change of it is obeyed after this at the latest."""

TOPOLOGY_BRIEFLY_S: Final = 0.1
TOPOLOGY_PATIENCE_NS: Final = 8 * 1_000_000_000
"""How long samples wait for a topology from when it was asked for: the one that asks briefly, since
commonly that is enough, and since it takes another before there are loads to plan for."""

TOPOLOGY_PAUSE_NS: Final = 60 * 1_000_000_000
"""How long to wait before libvirt is asked again for a topology that it did not tell."""

_event_loop_lock: Final = threading.Lock()


@functools.cache
def _start_event_loop() -> None:
    """Run libvirt's own event loop in a thread, once per process, for keepalive messages.

    It must be registered before the first connection is opened. It has no callbacks of ours.
    """
    # Without this every error is also printed to stderr, so twice in the journal.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_serve_events, name="libvirt-events", daemon=True).start()


def _serve_events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            # A failing turn must neither end keepalive for ever nor become a busy loop.
            time.sleep(EVENT_LOOP_PAUSE_S)


# Where libvirt asks for a name and a password (SASL, as under oVirt) its client takes them from a
# file (authfile= in the URI, or /etc/libvirt/auth.conf), but only for those who say that they could
# ask somebody for them, too (remoteAuthSASL). Here is nobody to ask: -1.
_CREDENTIALS: Final = (
    [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE],
    lambda _asked, _data: -1,
    None,
)


def _connect(uri: str, *, read_only: bool) -> Any:  # noqa: ANN401
    """Open a connection on which a call fails when libvirtd stops answering."""
    flags = libvirt.VIR_CONNECT_RO if read_only else 0
    connection = libvirt.openAuth(uri, [*_CREDENTIALS], flags)
    # Drivers inside the process (test:///) have no connection to keep alive.
    with contextlib.suppress(libvirt.libvirtError):
        connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    return connection


_ERRORS: Final = {getattr(libvirt, name): error for name, error in ERRORS.items()}
_VANISHED: Final = [code for code, error in _ERRORS.items() if error is VanishedError]
_LOST_CODES: Final = frozenset(getattr(libvirt, name) for name in LOST_CODES)
_LOST_DOMAINS: Final = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})


def translate(error: Any, *, alive: bool) -> HypervisorError:  # noqa: ANN401  libvirt has no types
    """Say in our words what a libvirt error means for us; `alive`: the connection stands."""
    code, text = error.get_error_code(), _in_words(error)
    if not alive or (code in _LOST_CODES and error.get_error_domain() in _LOST_DOMAINS):
        return ConnectionLostError(text)
    return _ERRORS.get(code, HypervisorError)(text)


def on_connecting(error: Any) -> HypervisorError:  # noqa: ANN401
    """Say what it means that a connection could not be opened."""
    # What the kernel says of the socket libvirt tells in words only.
    denied = _ERRORS.get(error.get_error_code()) is PermissionDeniedError
    denied = denied or "Permission denied" in str(error)
    return (PermissionDeniedError if denied else ConnectionLostError)(_in_words(error))


def _in_words(error: Any) -> str:  # noqa: ANN401
    return str(error.get_error_message() or error).strip().rstrip(".")


class _Question:
    """One question for the capabilities, asked in a thread and over a connection of its own.

    Commonly the answer takes 2 ms. But the first one after QEMU, libvirt or the kernel was changed
    takes seconds for every QEMU binary that is installed, since libvirt runs them all to see what
    they can do (virQEMUCapsInit): with many of them longer than a cycle may.
    """

    def __init__(self, uri: str) -> None:
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.until_ns = time.monotonic_ns() + TOPOLOGY_PATIENCE_NS
        arguments = (uri, self._answers)
        threading.Thread(
            target=self._ask, args=arguments, name="libvirt-topology", daemon=True
        ).start()

    def answer(self, patience_s: float) -> str | None:
        """Take the XML, or None when it cannot be had; raises queue.Empty when it is not here."""
        return self._answers.get(timeout=patience_s)

    @staticmethod
    def _ask(uri: str, answers: "queue.SimpleQueue[str | None]") -> None:
        xml = None
        try:
            connection = _connect(uri, read_only=True)
            try:
                xml = str(connection.getCapabilities())
            finally:
                connection.close()
        except libvirt.libvirtError:
            pass  # if libvirtd is gone, whoever asks over the other connection is told so
        answers.put(xml)


class LibvirtHost:
    """One connection to the libvirt of this host; when it is lost, open another."""

    def __init__(self, uri: str, connection: Any, first_seen: FirstSeen) -> None:  # noqa: ANN401  no types
        self._uri = uri
        self._connection = connection
        self._first_seen = first_seen
        self._definitions: dict[tuple[DomainUuid, int], tuple[int, Definition]] = {}
        """Each with the monotonic clock when it was read."""
        self._domains: dict[DomainUuid, Any] = {}
        self._map_length = 0
        self._offline = CpuSet()
        self._topology = Topology(())
        self._question: _Question | None = None
        self._ask_again_ns: int | None = None
        self._threads = Threads()

    @classmethod
    def open(
        cls, uri: str, *, read_only: bool = False, first_seen: FirstSeen | None = None
    ) -> "LibvirtHost":
        """Connect. Blocks for as long as libvirtd does not answer. Raises HypervisorError.

        `first_seen` outlives connections: what transient domains were allowed before we pinned
        them, which nobody else remembers.
        """
        with _event_loop_lock:
            _start_event_loop()
        try:
            connection = _connect(uri, read_only=read_only)
        except libvirt.libvirtError as error:
            raise on_connecting(error) from None
        return cls(uri, connection, first_seen if first_seen is not None else {})

    def is_alive(self) -> bool:
        """Tell whether the connection still stands, as far as keepalive knows; asks nobody."""
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
        """Read pCPUs and all running domains."""
        topology = self._topology_of(self._online())
        domains: list[DomainReading] = []
        unread: dict[DomainUuid, Unread] = {}
        with self._translated():
            running = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        self._domains = {DomainUuid(domain.UUIDString()): domain for domain in running}
        self._forget_ended()
        for uuid, domain in self._domains.items():
            try:
                domains.append(self._read(uuid, domain))
            except VanishedError:
                continue
            except ConnectionLostError:
                raise
            except HypervisorError as error:
                unread[uuid] = Unread(str(domain.name()), str(error))
        return Sample(
            topology=topology,
            domains=self._with_waits(domains),
            unread=unread,
            busy=host_cpus.busy(),
            isolated=host_cpus.isolated() | host_cpus.tickless(),
            offline=self._offline,
        )

    def _with_waits(self, domains: Sequence[DomainReading]) -> tuple[DomainReading, ...]:
        """Add how long vCPUs have waited."""
        asked = {
            (domain.uuid, domain.domain_id): [reading.vcpu for reading in domain.vcpus]
            for domain in domains
        }
        self._threads.forget_all_but(asked)
        self._threads.find(asked)
        quotas = Quotas()

        def with_waits(domain: DomainReading) -> DomainReading:
            key = (domain.uuid, domain.domain_id)
            told = self._threads.waited(key, asked[key], quotas)
            vcpus = (replace(vcpu, waited=told.get(vcpu.vcpu)) for vcpu in domain.vcpus)
            return replace(domain, vcpus=tuple(vcpus)) if told else domain

        return tuple(map(with_waits, domains))

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""
        with self._translated():
            return self._define(self._running(uuid))

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Read which pCPUs a vCPU may use right now: the real affinity of its thread."""
        with self._translated():
            readings = parse_vcpus(*self._running(vcpu.uuid).vcpus())
        for reading in readings:
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

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, CpuSet]) -> None:
        """Write where a domain's vCPUs were into its live metadata, or take that away.

        Like a pin this takes the domain's job, and is refused to whoever may not pin.
        """
        xml = libvirt_xml.origin_xml(origin) if origin else None
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

    def _online(self) -> CpuSet:
        with self._translated():
            self._map_length, flags, _count = self._connection.getCPUMap()
        self._offline = libvirt_xml.from_map([not flag for flag in flags])
        return libvirt_xml.from_map(flags)

    def _topology_of(self, online: CpuSet) -> Topology:
        """Give the topology of these pCPUs, read anew when they are others than before.

        While it is not known, the machine is flat.
        """
        now_ns, patience_s = time.monotonic_ns(), TOPOLOGY_BRIEFLY_S
        due = self._ask_again_ns is not None and now_ns >= self._ask_again_ns
        if due or self._topology.online != online:
            self._topology = _with_capacities(libvirt_xml.flat_topology(online))
            self._question, self._ask_again_ns = _Question(self._uri), None
        elif self._question is not None:
            patience_s = max(0, self._question.until_ns - now_ns) / 1e9
        if self._question is not None:
            with contextlib.suppress(queue.Empty):
                xml = self._question.answer(patience_s)
                self._question = None
                if xml is None:
                    self._ask_again_ns = now_ns + TOPOLOGY_PAUSE_NS
                else:
                    self._topology = _with_capacities(libvirt_xml.read_topology(xml, online))
        return self._topology

    def _forget_ended(self) -> None:
        running = {(uuid, domain.ID()) for uuid, domain in self._domains.items()}
        self._definitions = {key: read for key, read in self._definitions.items() if key in running}
        for key in self._first_seen.keys() - running:
            self._first_seen.pop(key, None)

    def _read(self, uuid: DomainUuid, domain: Any) -> DomainReading:  # noqa: ANN401
        domain_id = domain.ID()
        defined = self._defined(uuid, domain)
        with self._translated(domain, _VANISHED):
            at_ns = time.monotonic_ns()
            infos, maps = domain.vcpus()
            took_ns = time.monotonic_ns() - at_ns
        return DomainReading(
            uuid=uuid,
            domain_id=domain_id,
            name=str(domain.name()),
            at_ns=at_ns,
            took_ns=took_ns,
            vcpus=parse_vcpus(infos, maps),
            definition=defined,
        )

    def _defined(self, uuid: DomainUuid, domain: Any) -> Definition:  # noqa: ANN401
        """Give the definition, read anew when it is old; an empty one while it is unknown.

        It is not worth losing the loads for: from 11.0 on libvirt may wait for a busy guest here.
        """
        key = (uuid, domain.ID())
        at_ns, known = self._definitions.get(key, (None, Definition()))
        if at_ns is not None and time.monotonic_ns() - at_ns <= DEFINITION_AGE_MAX_NS:
            return known
        try:
            with self._translated():
                return self._define(domain)
        except ConnectionLostError:
            raise
        except HypervisorError:
            pass  # not told or understood: its vCPUs count, and stay where they are
        self._definitions[key] = time.monotonic_ns(), known
        return known

    def _define(self, domain: Any) -> Definition:  # noqa: ANN401
        uuid = DomainUuid(domain.UUIDString())
        live = _parsed(domain.XMLDesc(0))
        if domain.isPersistent():
            stated = _parsed(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        else:
            # A transient domain has no persistent definition: the live one stands in for it, as it
            # was when the domain was first seen, since later our own pins are in it.
            stated = replace(self._first_seen.setdefault((uuid, domain.ID()), live), wish=None)
        found = libvirt_xml.combined(live, stated)
        self._definitions[uuid, domain.ID()] = time.monotonic_ns(), found
        return found


def _with_capacities(topology: Topology) -> Topology:
    """Add what the kernel says that pCPUs can do, which libvirt does not say."""
    told = host_cpus.capacities(topology.online)
    cpus = (replace(cpu, capacity_ppm=told.get(cpu.id, PPM)) for cpu in topology.cpus)
    return replace(topology, cpus=tuple(cpus))


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


def _parsed(xml: str) -> Definition:
    try:
        return libvirt_xml.read_definition(xml)
    except ValueError as error:
        raise HypervisorError(f"its definition cannot be understood: {error}") from None
