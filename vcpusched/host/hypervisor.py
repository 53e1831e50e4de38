"""What the scheduler asks of a hypervisor, and how that can fail.

Rule: a protocol and its errors, nothing else. It exists because two implementations do: libvirt,
and a host in memory.
"""

from collections.abc import Mapping
from typing import Protocol

from vcpusched.model import CpuSet, Definition, DomainUuid, Sample, VcpuId


class HypervisorError(Exception):
    """Something asked of the hypervisor failed; the text says what, in one sentence."""


class ConnectionLostError(HypervisorError):
    """The hypervisor cannot be reached (any more); nothing else can be asked of this connection."""


class PermissionDeniedError(HypervisorError):
    """The hypervisor answered that we may not do this."""


class VanishedError(HypervisorError):
    """The domain or vCPU is not there any more, or not running: nothing is wrong."""


class BusyError(HypervisorError):
    """The domain is in the middle of something (a migration, a save) that excludes pinning."""


class NotRecordedError(HypervisorError):
    """What undoing a pin takes could not be kept, so it was not made; no domain is to blame."""


class Hypervisor(Protocol):
    """One host's hypervisor. Every method may block, and raises a `HypervisorError`."""

    def sample(self, crowded: CpuSet) -> Sample:
        """Read pCPUs and all running domains; a domain that ends meanwhile is left out.

        How long vCPUs waited is read only of those that may use none but `crowded` pCPUs.
        """

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Set the live affinity of one vCPU; its domain's definition stays as it is."""


class MarkingHypervisor(Hypervisor, Protocol):
    """A hypervisor whose domains can carry a mark of ours wherever they go."""

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Read which pCPUs that are online a vCPU may use right now.

        Raises VanishedError where it is not there any more, and any other `HypervisorError`.
        """

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, CpuSet]) -> None:
        """Write where a domain's vCPUs were into the running domain; nothing: take that away.

        Raises a `HypervisorError`.
        """
