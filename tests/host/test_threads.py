"""The threads of guests' vCPUs: whose they are believed to be, and what is read of them."""

import os
import threading
import time
from array import array
from pathlib import Path

import pytest
from proc_files import QEMU_USER, ProcFiles

from vcpusched.host import processes
from vcpusched.host.processes import machine_of, user_of_daemon
from vcpusched.host.threads import (
    PAUSE_NS,
    SETTLING_NS,
    UNREADABLE,
    Sweep,
    Threads,
    affinity_of,
    cpus_of,
)
from vcpusched.model import CpuSet, DomainUuid

UUID = DomainUuid("6f2b0c1e-0000-4000-8000-000000000001")
KEY = (UUID, 7)
PID = 20
TWO = {21: "CPU 0/KVM", 22: "CPU 1/KVM"}
SCOPE = r"0::/machine.slice/machine-qemu\x2d7\x2dweb.scope/libvirt/"
IN_SCOPE = f"{SCOPE}emulator\n"
USERS = {0, QEMU_USER}


class Seen:
    """The threads of one guest on a machine of files, and a clock that only the test moves."""

    def __init__(self, root: Path) -> None:
        self.files = ProcFiles(root, {})
        self.threads = Threads(root, self.files.affinity_of)
        self.now_ns = 0

    def sweep(self, *, after_ns: int = SETTLING_NS) -> Sweep | None:
        """Find and read the guest's vCPUs so much later; it has settled by then."""
        self.now_ns += after_ns
        self.threads.find({KEY: USERS}, self.now_ns)
        return self.threads.read(KEY)

    def runs_ns(self) -> dict[int, int] | None:
        """Return how long each vCPU ran, None where its guest cannot be read."""
        sweep = self.sweep()
        return {vcpu.vcpu: vcpu.run_ns for vcpu in sweep.vcpus} if sweep is not None else None

    def why_not(self) -> str:
        """Return why a guest that has settled cannot be read."""
        self.sweep()
        assert self.sweep() is None
        return self.threads.why_not(KEY)


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    """Give a machine without guests."""
    return Seen(tmp_path)


def test_what_is_read_of_each_vcpu(seen: Seen) -> None:
    """The files' own figures and the real affinity; other processes and threads are none of it."""
    seen.files.process(11, "another", {12: "CPU 0/KVM"})
    seen.files.process(PID, UUID, {22: "CPU 10/TCG", 21: "CPU 0/KVM", 23: "IO mon_iothread"})
    seen.files.thread(PID, 21, "CPU 0/KVM", counters="123456789012 987 5\n", on=13)
    seen.files.affinities[21] = {13}
    before_ns = time.monotonic_ns()
    sweep = seen.sweep()
    assert sweep is not None
    assert before_ns <= sweep.at_ns <= time.monotonic_ns()
    first, second = sweep.vcpus
    assert (first.vcpu, first.run_ns, str(first.affinity), first.on) == (0, 123456789012, "13", 13)
    assert first.waited is not None
    assert first.waited.wait_ns == 987
    assert (second.vcpu, second.run_ns, str(second.affinity), second.on) == (10, 500, "0-1", 2)
    assert seen.threads.group(KEY) == "0::/\n"


def test_guests_that_are_found_in_one_pass_are_told_apart(seen: Seen) -> None:
    """Each has its own process, and its own reason why it has none."""
    others = [DomainUuid(f"6f2b0c1e-0000-4000-8000-00000000000{number}") for number in (2, 3)]
    for pid, (uuid, ran) in {PID: (UUID, 5), 30: (others[0], 6)}.items():
        seen.files.process(pid, uuid, {pid + 1: "CPU 0/KVM"})
        seen.files.thread(pid, pid + 1, "CPU 0/KVM", counters=f"{ran} 0 1\n")
    keys = [(uuid, 7) for uuid in (UUID, *others)]
    for now_ns in (0, SETTLING_NS):
        seen.threads.find(dict.fromkeys(keys, USERS), now_ns)
    sweeps = [seen.threads.read(key) for key in keys]
    assert [sweep and sweep.vcpus[0].run_ns for sweep in sweeps] == [5, 6, None]
    assert [seen.threads.why_not(key) for key in keys] == ["", "", processes.ABSENT]


def test_a_guest_that_does_not_run_any_more_is_forgotten(seen: Seen) -> None:
    """Its next run is another guest, in a process of its own."""
    seen.files.process(PID, UUID, TWO)
    assert seen.sweep() is not None
    seen.threads.find({(UUID, 8): USERS}, seen.now_ns)
    assert seen.threads.read(KEY) is None
    assert seen.threads.affinity(KEY, 0) is None
    assert seen.threads.group(KEY) is None


def test_the_process_in_the_machines_cgroup_is_believed(seen: Seen) -> None:
    """Whichever user runs it, whatever else looks like it, whether it was there before or not."""
    seen.files.process(19, UUID, {191: "CPU 0/KVM"})
    seen.files.process(PID, UUID, TWO, groups=IN_SCOPE, user=4711)
    seen.files.process(30, UUID, {31: "CPU 0/KVM"})
    assert seen.runs_ns() == {0: 500, 1: 500}
    assert seen.threads.group(KEY) == IN_SCOPE


def test_what_was_there_before_the_guests_process_is_given_up_for_it(seen: Seen) -> None:
    """While a guest starts its process is not there yet, or not in its cgroup."""
    seen.files.process(19, UUID, {191: "CPU 0/KVM"})
    assert seen.sweep(after_ns=0) is not None
    assert seen.threads.group(KEY) == "0::/\n"
    seen.files.process(PID, UUID, TWO, groups=IN_SCOPE)
    assert seen.sweep(after_ns=1) is not None
    assert seen.threads.group(KEY) == IN_SCOPE


IMPOSTORS = {
    "a user's": ("0::/user.slice/user-1000.slice/session-3.scope\n", 1000, None),
    "in a scope that a user named like the machine's": (
        r"0::/user.slice/user-1000.slice/user@1000.service/machine-qemu\x2d7\x2dweb.scope" + "\n",
        1000,
        None,
    ),
    "in the machine of another guest, whose QEMU has the same user": (
        r"0::/machine.slice/machine-qemu\x2d3\x2dother.scope/libvirt/emulator" + "\n",
        QEMU_USER,
        None,
    ),
    "the same where nothing is left of that guest's name": (
        r"0::/machine.slice/machine-qemu\x2d3.scope/libvirt/emulator" + "\n",
        QEMU_USER,
        None,
    ),
    "a program with the rights of root that a user started": ("0::/\n", 1000, 0),
}


@pytest.mark.parametrize("which", IMPOSTORS)
def test_a_process_that_looks_like_the_guest_is_not_believed(seen: Seen, which: str) -> None:
    """It has the UUID on its command line and threads of the right names."""
    groups, user, effective = IMPOSTORS[which]
    seen.files.process(PID, UUID, TWO, groups=groups, user=user, effective=effective)
    assert seen.why_not() == processes.NOT_BELIEVED


def test_without_machines_the_user_decides_and_nobody_between_two(seen: Seen) -> None:
    """As in a session: what else its user runs may look like the guest, too."""
    seen.files.process(19, UUID, {191: "CPU 0/KVM"}, user=1000)
    seen.files.process(PID, UUID, TWO)
    assert seen.runs_ns() == {0: 500, 1: 500}
    seen.files.process(30, UUID, {31: "CPU 0/KVM"})
    seen.threads = Threads(seen.files.root, seen.files.affinity_of)  # as after a restart
    assert seen.why_not() == processes.SEVERAL


@pytest.mark.parametrize(
    ("groups", "machine"),
    [
        (r"0::/machine.slice/machine-qemu\x2d12\x2da\x2db.scope", 12),
        (r"0::/x.slice/x-y.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/vcpu0", 1),
        ("4:memory:/\n3:cpu,cpuacct:/machine/qemu-5-web.libvirt-qemu/emulator\n0::/\n", 5),
        (r"0::/machine.slice/machine-qemu\x2d12.scope/libvirt/emulator", 12),
        ("0::/machine/qemu-5.libvirt-qemu/emulator", 5),
        (r"0::/machine.slice/machine-qemu\x2d12web.scope", None),
        ("0::/machine.slice/libvirtd.service", None),
        (r"0::/machine-qemu\x2d1\x2dweb.scope", None),
        (r"0::/machine.slice/a.scope/machine.slice/machine-qemu\x2d1\x2dweb.scope", None),
        ("0::/docker/machine/qemu-5-web.libvirt-qemu", None),
        ("", None),
    ],
)
def test_the_machine_in_whose_cgroup_a_process_is(groups: str, machine: int | None) -> None:
    """Made by systemd in a slice, or by libvirt itself; what lies below another thing is none.

    Of a guest's name nothing is left there where no character of it is ASCII.
    """
    assert machine_of(groups) == machine


def test_others_processes_are_hidden(seen: Seen) -> None:
    """With hidepid= not even the first process is seen."""
    seen.files.end(1)
    assert seen.why_not() == processes.HIDDEN


def test_a_guest_without_a_process_here(seen: Seen) -> None:
    """As those of libvirt's other drivers; while a guest starts nothing is said of it."""
    assert seen.sweep(after_ns=0) is None
    assert not seen.threads.why_not(KEY)
    assert seen.why_not() == processes.ABSENT


def test_vcpus_without_threads_of_their_own(seen: Seen) -> None:
    """Emulated in one thread."""
    seen.files.process(PID, UUID, {21: "ALL CPUs/TCG"})
    assert seen.why_not() == processes.NO_THREADS


def test_a_guest_that_starts_is_searched_in_every_sample(seen: Seen) -> None:
    """First there is no process, then one without vCPUs."""
    assert seen.sweep(after_ns=0) is None
    seen.files.process(PID, UUID, {})
    assert seen.sweep(after_ns=1) is None
    seen.files.thread(PID, 21, "CPU 0/KVM")
    assert seen.sweep(after_ns=1) is not None


def test_a_guest_that_began_long_before_us_is_not_searched_again(seen: Seen) -> None:
    """Its threads say how old it is. One that comes later may have no QEMU of its own yet."""
    seen.files.process(PID, UUID, TWO)
    assert seen.sweep(after_ns=2 * SETTLING_NS) is not None
    seen.files.process(30, UUID, {31: "CPU 0/KVM"}, groups=IN_SCOPE)
    assert seen.sweep(after_ns=1) is not None
    assert seen.threads.group(KEY) == "0::/\n"
    later = (UUID, 8)
    seen.files.end(30)
    seen.threads.find({KEY: USERS, later: USERS}, seen.now_ns)
    seen.files.process(30, UUID, {31: "CPU 0/KVM"}, groups=IN_SCOPE.replace("x2d7", "x2d8"))
    seen.threads.find({KEY: USERS, later: USERS}, seen.now_ns + 1)
    assert seen.threads.group(later) == IN_SCOPE.replace("x2d7", "x2d8")


def test_a_guest_that_was_not_found_is_searched_once_a_minute(seen: Seen) -> None:
    """To look through all processes takes a while."""
    assert seen.sweep(after_ns=0) is None
    seen.files.process(PID, UUID, TWO)
    assert seen.sweep(after_ns=PAUSE_NS - 1) is None
    assert seen.sweep(after_ns=1) is not None


def test_a_vcpu_is_plugged_in_and_out(seen: Seen) -> None:
    """The number of threads says so; a vCPU without a thread is none."""
    seen.files.process(PID, UUID, TWO)
    assert seen.runs_ns() == {0: 500, 1: 500}
    seen.files.thread(PID, 25, "CPU 3/KVM", counters="7 8 9\n")
    sweep = seen.threads.read(KEY)
    assert sweep is not None
    assert [vcpu.vcpu for vcpu in sweep.vcpus] == [0, 1, 3]
    seen.files.end_thread(PID, 22)
    sweep = seen.threads.read(KEY)
    assert sweep is not None
    assert [vcpu.vcpu for vcpu in sweep.vcpus] == [0, 3]


def test_threads_come_and_go_that_are_no_vcpus(seen: Seen) -> None:
    """As those that serve disks. A vCPU that comes when one of them goes is seen in a minute."""
    seen.files.process(PID, UUID, {**TWO, 30: "worker"})
    assert seen.runs_ns() == {0: 500, 1: 500}
    seen.files.thread(PID, 31, "worker")
    assert seen.runs_ns() == {0: 500, 1: 500}
    seen.files.thread(PID, 32, "CPU 2/KVM")
    assert seen.runs_ns() == {0: 500, 1: 500, 2: 500}
    seen.files.end_thread(PID, 30)
    assert seen.runs_ns() == {0: 500, 1: 500, 2: 500}
    seen.files.end_thread(PID, 31)
    seen.files.thread(PID, 33, "CPU 3/KVM")
    assert seen.sweep(after_ns=PAUSE_NS) is not None
    assert seen.runs_ns() == {0: 500, 1: 500, 2: 500, 3: 500}


def test_of_a_vcpu_that_did_not_run_only_the_affinity_is_read_again(seen: Seen) -> None:
    """No other thread has run and waited for as long, to the ns."""
    seen.files.process(PID, UUID, TWO)
    before = seen.sweep()
    assert before is not None
    seen.files.affinities[21] = {1}
    seen.files.thread(PID, 22, "CPU 1/KVM", on=7)
    sweep = seen.threads.read(KEY)
    assert sweep is not None
    assert str(sweep.vcpus[0].affinity) == "1"
    assert sweep.vcpus[1] is before.vcpus[1]
    seen.files.thread(PID, 22, "CPU 1/KVM", on=7, counters="500 1001 4\n")
    sweep = seen.threads.read(KEY)
    assert sweep is not None
    assert sweep.vcpus[1].on == 7


def test_another_thread_of_the_same_number_is_another(seen: Seen) -> None:
    """It started at another time: read anew where it is a vCPU's, and not at all where not."""
    seen.files.process(PID, UUID, TWO)
    assert seen.sweep() is not None
    seen.files.thread(PID, 22, "worker", started=2000, counters="4 5 6\n")
    assert seen.threads.affinity(KEY, 1) is None
    sweep = seen.threads.read(KEY)
    assert sweep is not None
    assert [vcpu.vcpu for vcpu in sweep.vcpus] == [0]
    seen.files.thread(PID, 22, "CPU 1/KVM", started=3000, counters="1 2 3\n")
    sweep = seen.sweep(after_ns=1)
    assert sweep is not None
    assert [vcpu.run_ns for vcpu in sweep.vcpus] == [500, 1]


def test_another_process_of_the_same_number_is_another(seen: Seen) -> None:
    """The guest ended, and what came in its place has the same threads under the same numbers."""
    seen.files.process(PID, UUID, TWO)
    assert seen.sweep() is not None
    seen.files.end(PID)
    seen.files.process(PID, "another", {}, started=2000)
    for tid, name in TWO.items():
        seen.files.thread(PID, tid, name, started=2000, counters="4 5 6\n")
    assert seen.threads.affinity(KEY, 0) is None
    assert seen.threads.read(KEY) is None
    assert seen.sweep() is None


def test_the_affinity_of_one_vcpu_is_read_when_it_is_asked_for(seen: Seen) -> None:
    """Not the one of the last sample; a vCPU that there is not has none."""
    seen.files.process(PID, UUID, TWO)
    assert seen.sweep() is not None
    seen.files.affinities[21] = {3}
    assert seen.threads.affinity(KEY, 0) == CpuSet.of([3])
    assert seen.threads.affinity(KEY, 2) is None
    del seen.files.affinities[21]
    assert seen.threads.affinity(KEY, 0) is None


@pytest.mark.parametrize("counters", ["0 0 0\n", "", "1 2"])
def test_counters_that_the_kernel_does_not_keep(seen: Seen, counters: str) -> None:
    """Zeros are no idle vCPU: it ran at least until it had its name."""
    seen.files.process(PID, UUID, TWO)
    seen.files.thread(PID, 22, "CPU 1/KVM", counters=counters)
    assert seen.why_not() == UNREADABLE
    seen.files.thread(PID, 22, "CPU 1/KVM")
    assert seen.runs_ns() == {0: 500, 1: 500}
    assert not seen.threads.why_not(KEY)


def test_libvirts_own_number_of_a_vcpu_is_that_of_its_cgroup(seen: Seen) -> None:
    """The name of the thread is QEMU's, which may count otherwise after hotplug."""
    seen.files.process(PID, UUID, {}, groups=IN_SCOPE)
    seen.files.thread(PID, 21, "CPU 1/KVM", groups=f"{SCOPE}vcpu3\n")
    (seen.files.root / "sys/fs/cgroup" / f"{SCOPE}vcpu3".removeprefix("0::/")).mkdir(parents=True)
    assert seen.runs_ns() == {3: 500}


@pytest.mark.parametrize(("made", "started"), [(25, 1000), (12, 2000)])
def test_a_thread_that_a_vcpus_thread_made_is_not_the_vcpu(
    seen: Seen, made: int, started: int
) -> None:
    """It is born with the name and the cgroup of its maker; its number may be a lower one."""
    groups = f"{SCOPE}vcpu0\n"
    seen.files.process(PID, UUID, {}, groups=IN_SCOPE)
    seen.files.thread(PID, 21, "CPU 0/KVM", groups=groups, counters="7 8 9\n")
    seen.files.thread(PID, made, "CPU 0/KVM", groups=groups, started=started)
    (seen.files.root / "sys/fs/cgroup" / groups.strip().removeprefix("0::/")).mkdir(parents=True)
    assert seen.runs_ns() == {0: 7}


def test_of_a_quota_further_up_nobody_knows_whom_it_held_back(seen: Seen) -> None:
    """So how long a vCPU waited is not known, and how long it ran is."""
    seen.files.process(PID, UUID, {})
    seen.files.thread(PID, 21, "CPU 0/KVM", groups="0::/m/vcpu0\n")
    group = seen.files.root / "sys/fs/cgroup/m/vcpu0"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.max").write_text("50000 100000\n")
    sweep = seen.sweep()
    assert sweep is not None
    assert [(vcpu.run_ns, vcpu.waited) for vcpu in sweep.vcpus] == [(500, None)]


def test_a_quota_is_seen_within_a_minute(seen: Seen) -> None:
    """How long it held back is read in each sample."""
    seen.files.process(PID, UUID, {})
    seen.files.thread(PID, 21, "CPU 0/KVM", groups="0::/m/vcpu0\n")
    group = seen.files.root / "sys/fs/cgroup/m/vcpu0"
    group.mkdir(parents=True)

    def throttled_ns(after_ns: int = SETTLING_NS) -> int:
        sweep = seen.sweep(after_ns=after_ns)
        assert sweep is not None
        found = sweep.vcpus[0].waited
        assert found is not None
        return found.throttled_ns

    assert throttled_ns(2 * SETTLING_NS) == 0
    (group / "cpu.max").write_text("25000 100000\n")
    (group / "cpu.stat").write_text("throttled_usec 3\n")
    assert throttled_ns(PAUSE_NS) == 3000
    (group / "cpu.stat").write_text("throttled_usec 5\n")
    assert throttled_ns() == 5000
    (group / "cpu.stat").unlink()
    sweep = seen.sweep()
    assert sweep is not None
    assert sweep.vcpus[0].waited is None


def test_a_thread_of_this_process() -> None:
    """The kernel's own files: what a thread ran, between two readings of its file."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        task = Path(f"/proc/{os.getpid()}/task/{thread.native_id}")
        (task / "comm").write_text("CPU 0/KVM")
        process = processes.Process(os.getpid(), processes.started_at("/proc", os.getpid()) or b"")
        ((vcpu, found),) = processes.vcpu_threads("/proc", process).items()
        assert (vcpu, found.tid, Path(found.path)) == (0, thread.native_id, task)
        assert found.groups == (task / "cgroup").read_text()
        columns = processes.columns_of((task / "stat").read_bytes())
        assert columns is not None
        assert task.parent.stat().st_nlink == 2 + len(list(task.parent.iterdir()))
        assert int(columns[processes.LAST_CPU]) in os.sched_getaffinity(0)
    finally:
        ended.set()
        thread.join()


def test_the_user_of_the_daemon(tmp_path: Path) -> None:
    """Root for the system's, ourselves for our session's, and else whose socket it is."""
    assert user_of_daemon("qemu:///system") == 0
    assert user_of_daemon("qemu:///session") == os.geteuid()
    socket = tmp_path / "a socket"
    socket.touch()
    uri = "qemu:///session?socket=" + str(socket).replace(" ", "%20")
    assert user_of_daemon(uri) == tmp_path.stat().st_uid
    socket.unlink()
    assert user_of_daemon(uri) is None


def test_a_mask_of_several_words() -> None:
    """As of a host with more pCPUs than a word has bits."""
    words = array("L", [1, 0, 2])
    assert cpus_of(words.tobytes()) == CpuSet.of({0, 2 * 8 * words.itemsize + 1})
    assert cpus_of(bytes(1024)) == CpuSet()


def test_the_affinity_of_this_thread_is_what_the_standard_library_says() -> None:
    """Also when there is one pCPU less; of a thread that is not there it says so."""
    everywhere = os.sched_getaffinity(0)
    assert affinity_of(0) == affinity_of(threading.get_native_id()) == CpuSet.of(everywhere)
    try:
        os.sched_setaffinity(0, {max(everywhere)})
        assert affinity_of(0) == CpuSet.of({max(everywhere)})
    finally:
        os.sched_setaffinity(0, everywhere)
    assert affinity_of(2**22 + 1) is None  # above the highest that Linux gives
