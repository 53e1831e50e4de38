"""What libvirt's errors mean for us, and what is done about each.

Rule: one table. Sources: libvirt's include/libvirt/virterror.h, and what its QEMU driver raises.

An error is known by its code and by the part of libvirt that raised it: a connection that dies in a
call raises codes that also mean other things (rpc/virnetclient.c, remote/remote_driver.c). Whatever
is not in the table is a refusal without a reason that we know of: its domain is put aside.
"""

from dataclasses import dataclass
from typing import Any, Final

import libvirt

from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    HypervisorError,
    PermissionDeniedError,
    VanishedError,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One error code: the error of ours that it becomes, what happened, and what is done."""

    code: int
    error: type[HypervisorError]
    happened: str
    done: str


_SKIPPED: Final = "left out of the sample; a pin is skipped, and told at debug level only"
_ASIDE: Final = "told once; the domain is put aside for 10 cycles, doubled each time up to 640"
_DENIED: Final = "told once, at once; connecting is tried every 10 s, pins as if refused"
_LOST: Final = "told once; the rest of the plan is dropped; connected anew, and then looked afresh"

FAULTS: Final = (
    Fault(
        libvirt.VIR_ERR_NO_DOMAIN,
        VanishedError,
        "the domain ended since the list of domains was read",
        _SKIPPED,
    ),
    Fault(
        libvirt.VIR_ERR_OPERATION_INVALID,
        VanishedError,
        "the domain is not running; or, if it is, cannot do this (single-threaded emulation)",
        f"{_SKIPPED}; if it is running: {_ASIDE}",
    ),
    Fault(
        libvirt.VIR_ERR_INVALID_ARG,
        VanishedError,
        "the vCPU was taken away",
        _SKIPPED,
    ),
    Fault(
        libvirt.VIR_ERR_NO_DOMAIN_METADATA,
        VanishedError,
        "the mark that was to be taken away is not there",
        "nothing: that is what was wanted",
    ),
    Fault(
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        BusyError,
        "the domain was busy for 30 s: a job, or a monitor that hangs",
        _ASIDE,
    ),
    Fault(
        libvirt.VIR_ERR_RESOURCE_BUSY,
        BusyError,
        "something of the domain is in use elsewhere",
        _ASIDE,
    ),
    Fault(
        libvirt.VIR_ERR_ACCESS_DENIED,
        PermissionDeniedError,
        "libvirt's access control does not let us do this",
        _DENIED,
    ),
    Fault(
        libvirt.VIR_ERR_AUTH_FAILED,
        PermissionDeniedError,
        "polkit, or the password that libvirt asks for, does not let us connect",
        _DENIED,
    ),
    Fault(
        libvirt.VIR_ERR_AUTH_CANCELLED,
        PermissionDeniedError,
        "polkit asked nobody, since nobody could answer",
        _DENIED,
    ),
    Fault(
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        PermissionDeniedError,
        "polkit is not there to be asked",
        _DENIED,
    ),
    Fault(
        libvirt.VIR_ERR_OPERATION_DENIED,
        PermissionDeniedError,
        "the connection is read only",
        _DENIED,
    ),
    Fault(
        libvirt.VIR_ERR_SYSTEM_ERROR,
        HypervisorError,
        "the kernel refused, as for an affinity of which no pCPU is online or in the cpuset",
        _ASIDE,
    ),
    Fault(
        libvirt.VIR_ERR_INTERNAL_ERROR,
        HypervisorError,
        "libvirt failed in a way that it did not foresee",
        _ASIDE,
    ),
    Fault(
        libvirt.VIR_ERR_OPERATION_FAILED,
        HypervisorError,
        "QEMU refused",
        _ASIDE,
    ),
    Fault(
        libvirt.VIR_ERR_NO_SUPPORT,
        HypervisorError,
        "this libvirt cannot do that",
        _ASIDE,
    ),
    Fault(
        libvirt.VIR_ERR_NO_CONNECT,
        HypervisorError,
        "there is no such connection",
        _ASIDE,
    ),
    Fault(
        libvirt.VIR_ERR_INVALID_CONN,
        HypervisorError,
        "the connection was closed",
        _ASIDE,
    ),
)
"""What a code means while the connection stands."""

CONNECTION: Final = Fault(
    libvirt.VIR_ERR_RPC,
    ConnectionLostError,
    "libvirtd was stopped, restarted, killed, or hangs (keepalive ends a dead call after 8 s)",
    _LOST,
)
"""What any error means on a connection that is dead, and some do that say that it died."""

_CONNECTION_CODES: Final = frozenset(
    {
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
    }
)
_CONNECTION_DOMAINS: Final = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
_BY_CODE: Final = {fault.code: fault for fault in FAULTS}


def translate(error: Any, *, alive: bool) -> HypervisorError:  # noqa: ANN401  libvirt has no types
    """Say in our words what a libvirt error means for us; `alive`: the connection stands."""
    code, domain = error.get_error_code(), error.get_error_domain()
    if not alive or (code in _CONNECTION_CODES and domain in _CONNECTION_DOMAINS):
        return CONNECTION.error(in_words(error))
    known = _BY_CODE.get(code)
    return (HypervisorError if known is None else known.error)(in_words(error))


def on_connecting(error: Any) -> HypervisorError:  # noqa: ANN401
    """Say what it means that a connection could not be opened."""
    known = _BY_CODE.get(error.get_error_code())
    denied = known is not None and known.error is PermissionDeniedError
    # What the kernel says of the socket libvirt tells in words only.
    if denied or "Permission denied" in str(error):
        return PermissionDeniedError(in_words(error))
    return ConnectionLostError(in_words(error))


def in_words(error: Any) -> str:  # noqa: ANN401
    """Give libvirt's own words, as one sentence without a full stop."""
    return str(error.get_error_message() or error).strip().rstrip(".")
