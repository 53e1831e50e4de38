"""Connections to libvirt: how they are opened and kept alive, and what their errors mean for us.

Rule: knows no domain and no pCPU; every error of libvirt is put into our words here.
"""

import contextlib
import errno
import functools
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import libvirt

from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    CpuRefusedError,
    HypervisorError,
    PermissionDeniedError,
    VanishedError,
)

KEEPALIVE_INTERVAL_S: Final = 2
KEEPALIVE_COUNT: Final = 3
"""A libvirtd that stops answering fails every call after (count + 1) * interval = 8 s."""

EVENT_LOOP_PAUSE_S: Final = 1

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
# ask a person for them, too (remoteAuthSASL). Here is nobody to ask: -1.
_CREDENTIALS: Final = (
    [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE],
    lambda _asked, _data: -1,
    None,
)


def connect(uri: str, *, read_only: bool) -> Any:  # noqa: ANN401  libvirt has no types
    """Open a connection on which a call fails when libvirtd stops answering.

    Blocks for as long as libvirtd does not answer. Raises HypervisorError.
    """
    with _event_loop_lock:
        _start_event_loop()
    flags = libvirt.VIR_CONNECT_RO if read_only else 0
    try:
        connection = libvirt.openAuth(uri, [*_CREDENTIALS], flags)
    except libvirt.libvirtError as error:
        raise on_connecting(error) from None
    # Drivers inside the process (test:///) have no connection to keep alive.
    with contextlib.suppress(libvirt.libvirtError):
        connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    return connection


ERRORS: Final[Mapping[int, type[HypervisorError]]] = {
    libvirt.VIR_ERR_NO_DOMAIN: VanishedError,  # it ended since the list of domains was read
    libvirt.VIR_ERR_OPERATION_INVALID: VanishedError,  # it does not run, or cannot do this
    libvirt.VIR_ERR_INVALID_ARG: VanishedError,  # the vCPU was taken away
    libvirt.VIR_ERR_NO_DOMAIN_METADATA: VanishedError,  # the mark to be taken away is not there
    libvirt.VIR_ERR_OPERATION_TIMEOUT: BusyError,  # busy for 30 s: a job, or a monitor that hangs
    libvirt.VIR_ERR_RESOURCE_BUSY: BusyError,  # something of the domain is in use elsewhere
    libvirt.VIR_ERR_ACCESS_DENIED: PermissionDeniedError,  # by libvirt's access control
    libvirt.VIR_ERR_AUTH_FAILED: PermissionDeniedError,  # by polkit, or the password
    libvirt.VIR_ERR_AUTH_CANCELLED: PermissionDeniedError,  # polkit had nobody to ask
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: PermissionDeniedError,  # there is no polkit to be asked
    libvirt.VIR_ERR_OPERATION_DENIED: PermissionDeniedError,  # the connection is read only
}
"""What an error code of libvirt means while the connection stands; any other is a refusal without a
reason that we know of. On a dead connection each means that it is lost."""

CPU_REFUSED: Final = frozenset({errno.EINVAL, errno.EACCES})
"""What the kernel says of an affinity that has no pCPU which is online and in the cpuset, and in
version 1 of a group's cpuset that is not within the one above."""

_LOST_CODES: Final = frozenset(
    {
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
    }
)
"""What a connection that dies in a call raises, by libvirt's part for connections; these codes also
mean other things (rpc/virnetclient.c, remote/remote_driver.c)."""

VANISHED: Final = [code for code, error in ERRORS.items() if error is VanishedError]
_LOST_DOMAINS: Final = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})


def translate(error: Any, *, alive: bool) -> HypervisorError:  # noqa: ANN401  libvirt has no types
    """Return in our words what a libvirt error means for us; `alive`: the connection stands."""
    code, text = error.get_error_code(), _in_words(error)
    if not alive or (code in _LOST_CODES and error.get_error_domain() in _LOST_DOMAINS):
        return ConnectionLostError(text)
    if code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in CPU_REFUSED:
        return CpuRefusedError(text)
    return ERRORS.get(code, HypervisorError)(text)


def on_connecting(error: Any) -> HypervisorError:  # noqa: ANN401
    """Return what it means that a connection could not be opened."""
    # What the kernel says of the socket libvirt reports in words only.
    denied = ERRORS.get(error.get_error_code()) is PermissionDeniedError
    denied = denied or "Permission denied" in str(error)
    return (PermissionDeniedError if denied else ConnectionLostError)(_in_words(error))


def _in_words(error: Any) -> str:  # noqa: ANN401
    return str(error.get_error_message() or error).strip().rstrip(".")
