"""What is read of vCPU threads, beside what libvirt says of the same guests."""

import contextlib
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import libvirt
import pytest
from lab import Guest, Lab

from vcpusched.host import processes
from vcpusched.host.libvirt_host import LibvirtHost, parse_vcpus
from vcpusched.model import CpuSet, VcpuId
from vcpusched.sample import DomainReading, Sample, VcpuReading

ANOTHER_USER = 65533
"""The number of a user who owns nothing."""

LOOKS_LIKE = 'echo "CPU 0/KVM" >/proc/self/comm && echo ready && read -r end'
"""A program that names its thread after a vCPU; on its command line comes a UUID."""

HIDDEN_PROC = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'

UNPRIVILEGED = ("--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--clear-groups")
"""Root as the kernel hides processes from: it may use the lab's socket, and trace nobody."""

SAMPLE = """
import json, sys, time
from vcpusched.host.libvirt_host import LibvirtHost
from vcpusched.host.threads import SETTLING_NS
host = LibvirtHost(sys.argv[1])
host.sample()
time.sleep(SETTLING_NS / 1e9)
sample = host.sample()
print(json.dumps([sample.by_libvirt, [len(domain.vcpus) for domain in sample.domains]]))
"""


@pytest.fixture
def host(lab: Lab) -> Iterator[LibvirtHost]:
    """Give the service's connection to the lab."""
    opened = LibvirtHost(lab.uri)
    yield opened
    opened.close()


def only(sample: Sample) -> DomainReading:
    """Return the one guest that was read."""
    assert not sample.unread
    (domain,) = sample.domains
    return domain


def by_number(vcpus: Sequence[VcpuReading]) -> Mapping[int, VcpuReading]:
    """Return vCPUs by their number."""
    return {vcpu.vcpu: vcpu for vcpu in vcpus}


def is_of_threads(domain: DomainReading) -> bool:
    """Return whether the threads were read: libvirt does not say how long a vCPU waited."""
    return all(vcpu.waited is not None for vcpu in domain.vcpus)


def equals_libvirt(guest: Guest, domain: DomainReading) -> None:
    """Compare with what libvirt says now, whose counters are in steps of 10 ms."""
    ours, theirs = by_number(domain.vcpus), by_number(parse_vcpus(*guest.domain().vcpus()))
    assert ours.keys() == theirs.keys()
    for number, vcpu in ours.items():
        assert vcpu.affinity == theirs[number].affinity
        assert vcpu.on is not None
        assert 0 < vcpu.run_ns <= theirs[number].run_ns + 2 * 10_000_000


@contextlib.contextmanager
def impostor(uuid: str, command: Sequence[str] = ()) -> Iterator[None]:
    """Run a process that looks like the QEMU of a guest."""
    look = ["sh", "-c", LOOKS_LIKE, "sh", "-uuid", uuid]
    with subprocess.Popen(
        [*command, *look], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate("\n")


def test_guests_are_read_as_libvirt_would(lab: Lab, host: LibvirtHost) -> None:
    """Pinned and not; the run time is never behind that of libvirt by more than its steps."""
    lab.add_guest("pinned", [0.1, 0.1], pin=[1, 0])
    lab.add_guest("floating", [0.1])
    before = {name: parse_vcpus(*guest.domain().vcpus()) for name, guest in lab.guests.items()}
    sample = host.sample()
    assert {domain.name for domain in sample.domains} == set(lab.guests)
    for domain in sample.domains:
        assert is_of_threads(domain)
        equals_libvirt(lab.guests[domain.name], domain)
        for vcpu in before[domain.name]:
            # Of a running thread the kernel's own account may be a tick behind.
            assert by_number(domain.vcpus)[vcpu.vcpu].run_ns >= vcpu.run_ns - 10_000_000
    (pinned,) = (domain for domain in sample.domains if domain.name == "pinned")
    assert [str(vcpu.affinity) for vcpu in pinned.vcpus] == ["1", "0"]
    lab.guests["pinned"].pin([0, 0])
    assert host.affinity(VcpuId(pinned.uuid, pinned.domain_id, 0)) == CpuSet.of([0])
    assert not sample.by_libvirt


def test_a_guest_is_restarted(lab: Lab, host: LibvirtHost) -> None:
    """It is another run of it, in another process."""
    guest = lab.add_guest("g", [0.1])
    first = only(host.sample())
    guest.restart()
    second = only(host.sample())
    assert first.uuid == second.uuid
    assert first.domain_id != second.domain_id
    assert is_of_threads(second)
    equals_libvirt(guest, second)


def test_a_vcpu_is_plugged_in(lab: Lab, host: LibvirtHost) -> None:
    """What is not plugged in is no vCPU; there is no event for it."""
    guest = lab.add_guest("g", [0.1], vcpus_max=3)
    equals_libvirt(guest, only(host.sample()))
    guest.domain().setVcpusFlags(2, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain = only(host.sample())
    assert [vcpu.vcpu for vcpu in domain.vcpus] == [0, 1]
    assert is_of_threads(domain)
    equals_libvirt(guest, domain)


def test_what_another_user_runs_is_not_taken_for_the_guest(lab: Lab) -> None:
    """It names the guest's UUID and has a thread with the name of a vCPU."""
    guest = lab.add_guest("g", [0.1, 0.1])
    user = ["setpriv", f"--reuid={ANOTHER_USER}", "--clear-groups", "--"]
    with impostor(guest.uuid, user):
        host = LibvirtHost(lab.uri)
        domain = only(host.sample())
        host.close()
    assert len(domain.vcpus) == 2
    assert is_of_threads(domain)


def test_between_two_processes_of_the_guests_user_libvirt_decides(lab: Lab) -> None:
    """In a session nothing else distinguishes them; libvirt knows which one it started."""
    guest = lab.add_guest("g", [0.1, 0.1])
    with impostor(guest.uuid, lab.command([])):
        host = LibvirtHost(lab.uri)
        domain = only(host.sample())
        vcpu = VcpuId(domain.uuid, domain.domain_id, 1)
        assert host.affinity(vcpu) == domain.vcpus[1].affinity
        host.close()
    assert len(domain.vcpus) == 2
    assert not is_of_threads(domain)


def test_where_processes_are_hidden_libvirt_is_asked(lab: Lab) -> None:
    """A mount of /proc with hidepid=2, seen without the right to trace; the reason is reported."""
    lab.add_guest("g", [0.1, 0.1])
    group = pwd.getpwnam("nobody").pw_gid
    unprivileged = ["setpriv", f"--regid={group}", *UNPRIVILEGED, "--"]
    program = [sys.executable, "-c", SAMPLE, lab.uri]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", HIDDEN_PROC, "sh", *unprivileged, *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{processes.HIDDEN: ["g"]}, [2]]
