"""What is asked of a hypervisor, and how that can fail.

Rule: a protocol and its errors. It exists because two implementations do: libvirt, and hosts in
memory.
"""

from collections.abc import Mapping
from typing import Protocol

from vcpusched.model import CpuSet, DomainUuid, VcpuId
from vcpusched.sample import Definition, Origin, Sample


class HypervisorError(Exception):
    """Something asked of the hypervisor failed; the text says what, in one sentence."""


class ConnectionLostError(HypervisorError):
    """The hypervisor cannot be reached (any more); nothing else can be asked of this connection."""


class PermissionDeniedError(HypervisorError):
    """The hypervisor answered that we may not do this."""


class VanishedError(HypervisorError):
    """The domain or vCPU is not there any more, or not running: nothing is wrong."""


class OvertakenError(HypervisorError):
    """Another changed the affinity since it was read, so ours was not made: nothing is wrong."""


class BusyError(HypervisorError):
    """The domain is in the middle of something (a migration, a save) that excludes pinning."""


class CpuRefusedError(HypervisorError):
    """The kernel takes none of the pCPUs of an affinity: not online, or not in the cpuset."""


class NotRecordedError(HypervisorError):
    """What undoing a pin takes could not be kept, so it was not made; no domain is to blame."""


class Hypervisor(Protocol):
    """One host's hypervisor, whose domains can carry a mark of ours wherever they go.

    Every method may block, and raises a `HypervisorError`.
    """

    def sample(self) -> Sample:
        """Read pCPUs and all running domains; a domain that ends meanwhile is left out."""

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Set the live affinity of one vCPU; its domain's definition stays as it is."""

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Read which pCPUs that are online a vCPU may use right now.

        Raises VanishedError where it is not there any more.
        """

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Write originals and our pins into the running domain; nothing: take the mark away."""
