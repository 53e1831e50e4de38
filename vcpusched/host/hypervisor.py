"""What is asked of a hypervisor, how that can fail, and what libvirt's errors mean.

Rule: a protocol, its errors and one table. It exists because two implementations do: libvirt, and
hosts in memory.
"""

import errno
from collections.abc import Mapping
from typing import Final, Protocol

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


ERRORS: Final[Mapping[str, type[HypervisorError]]] = {
    "VIR_ERR_NO_DOMAIN": VanishedError,  # it ended since the list of domains was read
    "VIR_ERR_OPERATION_INVALID": VanishedError,  # it does not run; or, if it does, cannot do this
    "VIR_ERR_INVALID_ARG": VanishedError,  # the vCPU was taken away
    "VIR_ERR_NO_DOMAIN_METADATA": VanishedError,  # the mark to be taken away is not there
    "VIR_ERR_OPERATION_TIMEOUT": BusyError,  # busy for 30 s: a job, or a monitor that hangs
    "VIR_ERR_RESOURCE_BUSY": BusyError,  # something of the domain is in use elsewhere
    "VIR_ERR_ACCESS_DENIED": PermissionDeniedError,  # by libvirt's access control
    "VIR_ERR_AUTH_FAILED": PermissionDeniedError,  # by polkit, or the password that was asked for
    "VIR_ERR_AUTH_CANCELLED": PermissionDeniedError,  # polkit had nobody to ask
    "VIR_ERR_AUTH_UNAVAILABLE": PermissionDeniedError,  # there is no polkit to be asked
    "VIR_ERR_OPERATION_DENIED": PermissionDeniedError,  # the connection is read only
    "VIR_ERR_SYSTEM_ERROR": HypervisorError,  # the kernel refused; of a pin see `CPU_REFUSED`
    "VIR_ERR_INTERNAL_ERROR": HypervisorError,  # libvirt did not foresee how it failed
    "VIR_ERR_OPERATION_FAILED": HypervisorError,  # QEMU refused
    "VIR_ERR_NO_SUPPORT": HypervisorError,  # this libvirt cannot do that
    "VIR_ERR_NO_CONNECT": HypervisorError,  # there is no such connection
    "VIR_ERR_INVALID_CONN": HypervisorError,  # the connection was closed
}
"""What an error code of libvirt means while the connection stands; any other is a refusal without a
reason that we know of. On a dead connection each means that it is lost."""

CPU_REFUSED: Final = frozenset({errno.EINVAL, errno.EACCES})
"""What the kernel says of an affinity that has no pCPU which is online and in the cpuset, and in
version 1 of a group's cpuset that is not within the one above."""

LOST_CODES: Final = frozenset(
    {
        "VIR_ERR_RPC",
        "VIR_ERR_SYSTEM_ERROR",
        "VIR_ERR_INTERNAL_ERROR",
        "VIR_ERR_NO_CONNECT",
        "VIR_ERR_INVALID_CONN",
    }
)
"""What a connection that dies in a call raises, by libvirt's part for connections; these codes also
mean other things (rpc/virnetclient.c, remote/remote_driver.c)."""


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
