"""The table of libvirt's errors: each means one thing, and what is said to be done is done."""

import errno

import libvirt
import pytest
from builders import crowded, run

from vcpusched.act.cycle import Scheduler
from vcpusched.act.table import QUARANTINE_CYCLES
from vcpusched.host.connection import CPU_REFUSED, ERRORS, on_connecting, translate
from vcpusched.host.hypervisor import (
    ConnectionLostError,
    CpuRefusedError,
    HypervisorError,
    PermissionDeniedError,
    VanishedError,
)

REFUSALS = [libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_OPERATION_FAILED, 99_999]
EVERY = pytest.mark.parametrize("code", [*ERRORS, *REFUSALS])


def libvirt_error(
    code: int, domain: int = libvirt.VIR_FROM_QEMU, number: int = -1
) -> libvirt.libvirtError:
    """Make an error as the binding raises it, with its fields in the order of virError."""
    error = libvirt.libvirtError("")
    error.err = (code, domain, "what libvirt said.", 2, "", "", "", number, -1)
    return error


@EVERY
def test_what_it_becomes(code: int) -> None:
    """While the connection stands; on a dead one everything means that it is dead."""
    found = translate(libvirt_error(code), alive=True)
    assert type(found) is ERRORS.get(code, HypervisorError)
    assert str(found) == "what libvirt said"
    dead = translate(libvirt_error(code), alive=False)
    assert type(dead) is ConnectionLostError


@pytest.mark.parametrize(
    "code",
    [
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_INVALID_CONN,
    ],
)
@pytest.mark.parametrize("domain", [libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE])
def test_a_connection_that_dies_in_a_call(code: int, domain: int) -> None:
    """What it raises then depends on where in the call it died."""
    error = libvirt_error(code, domain)
    assert type(translate(error, alive=True)) is ConnectionLostError


@pytest.mark.parametrize("number", [*CPU_REFUSED, errno.EPERM])
def test_what_the_kernel_says_of_an_affinity(number: int) -> None:
    """Its error number comes along; others than these are no matter of pCPUs."""
    found = translate(libvirt_error(libvirt.VIR_ERR_SYSTEM_ERROR, number=number), alive=True)
    assert type(found) is (CpuRefusedError if number in CPU_REFUSED else HypervisorError)


@EVERY
def test_connecting(code: int) -> None:
    """A connection is refused, or there is none (yet)."""
    found = on_connecting(libvirt_error(code))
    denied = ERRORS.get(code) is PermissionDeniedError
    assert type(found) is (PermissionDeniedError if denied else ConnectionLostError)


@EVERY
def test_what_is_done_when_a_pin_fails(code: int) -> None:
    """The guest is skipped where nothing is wrong, else put aside; all others are balanced."""
    refusing: list[str] = []

    def on_pin(name: str) -> None:
        refusing.append(name)
        if name == refusing[0]:
            if vanished:
                del host.wants[name]
            raise translate(libvirt_error(code), alive=True)

    vanished = ERRORS.get(code) is VanishedError
    host, scheduler = crowded(on_pin), Scheduler()
    cycle = run(scheduler, host, 3)
    (failure,) = cycle.failures
    assert failure.why == "what libvirt said"
    assert failure.expected == vanished
    run(scheduler, host, QUARANTINE_CYCLES - 1)
    assert len(host.pins) == (1 if vanished else 2)
    assert refusing.count(refusing[0]) == 1


@EVERY
def test_what_is_done_when_a_plan_loses_its_connection(code: int) -> None:
    """No further pin is made in that cycle, and the next plan is made from what is seen then."""
    pins: list[str] = []

    def on_pin(name: str) -> None:
        pins.append(name)
        if len(pins) == 1:
            raise translate(libvirt_error(code), alive=False)

    host, scheduler = crowded(on_pin), Scheduler()
    cycle = run(scheduler, host, 3)
    assert cycle.lost == "what libvirt said"
    assert cycle.failures == ()
    assert host.pins == []
    run(scheduler, host, 4)
    assert len(host.pins) == 2


def test_a_guest_that_cannot_be_read_keeps_its_load() -> None:
    """Its domain is reported as unread, and moved nowhere meanwhile."""
    host, scheduler = crowded(), Scheduler()
    run(scheduler, host, 2)
    host.unread.add("g0")
    cycle = run(scheduler, host, 6)
    assert [unread.name for unread in cycle.sample.unread.values()] == ["g0"]
    assert str(host.cpus["g0"]) == "0"
    assert len(host.pins) == 2
