"""Others at the same affinities, and a service that is killed: on real libvirt and guests."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest
from lab import Guest, Lab
from service import Service, running, wait_for

from vcpusched.host.hypervisor import BusyError
from vcpusched.host.libvirt_host import LibvirtHost
from vcpusched.host.libvirt_xml import ORIGIN
from vcpusched.model import CpuSet, VcpuId
from vcpusched.sample import Origin


def pinned(service: Service, count: int) -> None:
    """Wait until the service has pinned so many vCPUs."""
    service.wait(f"{count} pins", lambda: service.pins >= count)


def ledger(service: Service) -> dict[str, dict[str, object]]:
    """Give the record of each guest's vCPU 0 in the ledger."""
    kept = json.loads((service.run_directory / "affinity.json").read_text())
    return {domain["name"]: domain["vcpus"][0] for domain in kept["domains"]}


def affinities(lab: Lab) -> dict[str, set[int]]:
    """Give the real affinity of each guest's vCPU 0."""
    return {name: set(guest.affinity(0)) for name, guest in lab.guests.items()}


def moved(lab: Lab) -> Guest:
    """Give a guest that was moved to pCPU 1."""
    return next(guest for guest in lab.guests.values() if guest.affinity(0) == {1})


def status(service: Service) -> str:
    """Give what `vcpusched status` shows."""
    return service.ask("status", "-v").stdout


def test_a_person_pins(lab: Lab) -> None:
    """As virsh and taskset do; reported once, shown, held, also by the service after a kill."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with running(lab, "0.5", VCPUSCHED_COOLDOWN="0") as service:
        pinned(service, 2)
        by_libvirt = moved(lab)
        by_libvirt.pin(0)
        service.wait("held", lambda: bool(service.lines("Someone else pinned", by_libvirt.name)))
        by_taskset = moved(lab)
        os.sched_setaffinity(by_taskset.vcpu_threads()[0], {0})
        service.wait("held", lambda: bool(service.lines("Someone else pinned", by_taskset.name)))
        service.wait_cycles(6)
        for guest in (by_libvirt, by_taskset):
            assert guest.affinity(0) == {0}
            assert f"{guest.name} stays: pinned to pCPU 0 by someone else" in status(service)
            assert len(service.lines("Someone else pinned", guest.name)) == 1
        service.process.kill()
        service.process.wait()
        held = {by_libvirt.name, by_taskset.name}
        with service.succeeded(lab.uri, "0.5", VCPUSCHED_COOLDOWN="0") as again:
            again.wait_cycles(6)
            assert not again.lines("Someone else")
            assert all(f"{name} stays: pinned to pCPU 0" in status(again) for name in held)
            by_libvirt.restart()
            again.wait("released", lambda: f"{by_libvirt.name} stays: pin" not in status(again))
    assert by_taskset.affinity(0) == {0}


def test_someone_else_keeps_a_pool(lab: Lab) -> None:
    """A definition of pCPUs 0 and 1, a pool of both: pins end, and both are reported."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with running(lab, "0.5") as service:
        pinned(service, 2)
        guest = moved(lab)
        guest.confine({0, 1})
        service.wait(
            "reported",
            lambda: bool(service.lines("Someone else set the affinity of vCPU 0", guest.name)),
        )
        service.wait("forgotten", lambda: guest.name not in ledger(service))


def test_the_kernel_undoes_a_pin(lab: Lab) -> None:
    """The thread may run anywhere, libvirt's books have our pin: made again, three times."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.08], pin=0)
    with running(lab, "0.5") as service:
        pinned(service, 1)
        service.wait_cycles(1)
        guest, reset = moved(lab), "The kernel reset the affinity of vCPU 0"
        for number in range(1, 4):
            os.sched_setaffinity(guest.vcpu_threads()[0], {0, 1})
            service.wait("reported", lambda: len(service.lines(reset)) == number)  # noqa: B023  awaited here
            service.wait("pinned again", lambda: guest.affinity(0) == {1})
        os.sched_setaffinity(guest.vcpu_threads()[0], {0, 1})
        service.wait("left", lambda: bool(service.lines("warning", "not pinned again until")))
        service.wait_cycles(4)
        assert guest.affinity(0) == {0, 1}
        assert "reset by the kernel again and again" in status(service)
        assert len(service.lines(reset)) == 3


def test_killed_and_started_again(lab: Lab) -> None:
    """Kill -9 after two pins: the next run knows them for its own, and holds nobody."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with running(lab, "0.5") as service:
        pinned(service, 2)
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()
        before = ledger(service)
        assert {name: record["original"] for name, record in before.items()} == dict.fromkeys(
            (guest.name for guest in lab.guests.values() if guest.affinity(0) == {1}), "0"
        )
        with service.succeeded(lab.uri, "0.5") as again:
            again.wait_cycles(4)
            assert not again.lines("Someone else")
            assert ledger(again).keys() == before.keys()


def test_without_a_ledger_nothing_is_pinned(lab: Lab) -> None:
    """The ledger cannot be written: no pin, said once; then it can, and the host is balanced."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with running(lab, "0.5", VCPUSCHED_LOG_LEVEL="warning") as service:
        # The name under which the new file would be written is taken by a directory.
        blocker = service.run_directory / f".affinity.json.{service.pid}"
        service.wait("its directory", service.run_directory.exists)
        blocker.mkdir()
        service.wait("refused", lambda: bool(service.lines("cannot be written down")))
        service.wait_cycles(8)
        assert len(service.lines("cannot be written down")) == 1
        assert set(map(frozenset, affinities(lab).values())) == {frozenset({0})}
        assert service.ask("status").returncode == 1
        Path(blocker).rmdir()
        pinned(service, 2)
        service.wait("healthy", lambda: service.ask("status").returncode == 0)


def test_a_truncated_ledger(lab: Lab) -> None:
    """It is set aside and said in one line; single pins are then placement, and nobody is held."""
    guest = lab.add_guest("g", [0.06], pin=0)
    with running(lab, "0.5") as service:
        service.wait_cycles(2)
        service.process.kill()
        service.process.wait()
        (service.run_directory / "affinity.json").write_text('{"version":1,"domains":[{"uu')
        with service.succeeded(lab.uri, "0.5") as again:
            again.wait_cycles(3)
            assert len(again.lines("warning", "The ledger cannot be used")) == 1
            assert (again.run_directory / "affinity.unusable-1.json").exists()
            assert "May be moved: g" in status(again)
    wait_for("nothing changed", lambda: guest.affinity(0) == {0})


def crowd(lab: Lab, count: int = 4) -> None:
    """Add guests that are all bound to pCPU 0."""
    for index in range(count):
        lab.add_guest(f"g{index}", [0.06], pin=0)


def are_all_on_0(lab: Lab) -> bool:
    """Return whether everything is as it was before vcpusched."""
    return set(map(frozenset, affinities(lab).values())) == {frozenset({0})}


def test_a_restore_of_one_touches_no_other(lab: Lab) -> None:
    """Without the service; of another guest the kernel reset a pin, which is not its business."""
    crowd(lab)
    with running(lab, "1") as service:
        pinned(service, 2)
        service.process.kill()
        service.process.wait()
        one, other = (lab.guests[name] for name, cpus in affinities(lab).items() if cpus == {1})
        os.sched_setaffinity(other.vcpu_threads()[0], {0, 1})
        done = service.ask("restore", "--uri", lab.uri, one.name)
        assert done.returncode == 0, done.stderr
        assert affinities(lab)[one.name] == {0}
        assert affinities(lab)[other.name] == {0, 1}


def test_a_stop_restores(lab: Lab) -> None:
    """SIGTERM: every vCPU is where it was, each with an entry; definitions are as they were."""
    crowd(lab)
    before = {name: guest.domain().XMLDesc(2) for name, guest in lab.guests.items()}
    with running(lab, "0.5") as service:
        pinned(service, 2)
        service.terminate()
        assert service.process.returncode == 0
        assert are_all_on_0(lab)
        assert len(service.lines("Restored vCPU 0 of", "pCPU 1 -> pCPU 0")) == 2
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in service.notified)
        assert not ledger(service)
    assert {name: guest.domain().XMLDesc(2) for name, guest in lab.guests.items()} == before


def test_a_stop_that_leaves(lab: Lab) -> None:
    """on_stop = "leave": pins stay; `restore` without a service restores them, and holds none."""
    crowd(lab)
    with running(lab, "0.5", VCPUSCHED_ON_STOP="leave") as service:
        pinned(service, 2)
        service.terminate()
        assert not are_all_on_0(lab)
        done = service.ask("restore", "--uri", lab.uri)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count(": pCPU 1 -> pCPU 0\n") == 2
        assert are_all_on_0(lab)
        again = service.ask("restore", "--uri", lab.uri)
        assert (again.returncode, again.stdout) == (0, "No vCPU is pinned by vcpusched.\n")
        with service.succeeded(lab.uri, "0.5") as later:
            pinned(later, 2)


def test_restore_after_kill(lab: Lab) -> None:
    """The service was killed with -9: `restore` restores everything, twice the same."""
    crowd(lab)
    with running(lab, "0.5") as service:
        pinned(service, 2)
        service.process.kill()
        service.process.wait()
        assert service.ask("restore", "--uri", lab.uri).returncode == 0
        assert are_all_on_0(lab)
        assert service.ask("restore", "--uri", lab.uri).returncode == 0


def test_restore_beside_the_service(lab: Lab) -> None:
    """It answers at once, pins nobody again until `release`, and then goes on."""
    crowd(lab)
    with running(lab, "0.5", VCPUSCHED_COOLDOWN="0") as service:
        pinned(service, 2)
        guest = moved(lab)
        assert service.ask("restore", "nobody").returncode == 2
        done = service.ask("restore", guest.name)
        assert done.stdout.startswith(f"Restored vCPU 0 of {guest.name}: pCPU 1 -> pCPU 0\n")
        assert f'\n{guest.name} is held until "vcpusched release' in done.stdout
        assert guest.affinity(0) == {0}
        assert service.ask("restore", guest.uuid).stdout.startswith(f"{guest.name} is not pinned")
        # A mistake in the settings of today is none of those that the service runs with.
        rest = service.ask("restore", "--config", "/dev/null/no.toml")
        assert (rest.returncode, rest.stderr) == (0, "")
        assert 'All guests are held until "vcpusched release"' in rest.stdout
        service.wait_cycles(6)
        assert are_all_on_0(lab)
        assert f"{guest.name} stays: restored on request" in status(service)
        assert len(service.lines("Restored vCPU 0 of", guest.name)) == 1
        pins = service.pins
        released = service.ask("release")
        assert f"{guest.name}: released\n" in released.stdout
        assert service.ask("release", guest.name).stdout == f"{guest.name}: was not held\n"
        pinned(service, pins + 1)
        assert not list(service.run_directory.glob("request-*"))
        assert not list(service.run_directory.glob("answer-*"))


def test_a_stop_without_libvirt(lab: Lab) -> None:
    """Libvirtd is gone: the stop waits a little, says so, and `restore` mends it later."""
    crowd(lab)
    with running(lab, "0.5") as service:
        pinned(service, 2)
        lab.stop_daemon()
        service.terminate()
        assert service.process.returncode == 0
        assert len(service.lines("warning", "Pins are left, because libvirt does not answer")) == 1
        assert service.ask("restore", "--uri", lab.uri).returncode == 69
        lab.start_daemon()
        assert service.ask("restore", "--uri", lab.uri).returncode == 0
        assert are_all_on_0(lab)


def test_restore_of_a_guest_that_hangs(lab: Lab) -> None:
    """Its QEMU is stopped, its monitor asked: the others are restored, it is reported, status 1."""
    crowd(lab)
    with running(lab, "0.5", VCPUSCHED_ON_STOP="leave") as service:
        pinned(service, 2)
        service.terminate()
        hangs = moved(lab)
        os.kill(hangs.pid, signal.SIGSTOP)
        asker = threading.Thread(target=ask_its_monitor, args=(lab.uri, hangs.uuid), daemon=True)
        try:
            asker.start()
            time.sleep(1.5)
            done = service.ask("restore", "--uri", lab.uri)
            assert done.returncode == 1
            assert (
                f"Could not restore vCPU 0 of {hangs.name} to pCPU 0: the domain is busy"
                in done.stderr
            )
            assert [name for name, cpus in affinities(lab).items() if cpus == {1}] == [hangs.name]
        finally:
            os.kill(hangs.pid, signal.SIGCONT)
        asker.join()
        assert service.ask("restore", "--uri", lab.uri).returncode == 0
        assert are_all_on_0(lab)


def ask_its_monitor(uri: str, uuid: str) -> None:
    """Have libvirt wait for a guest's QEMU."""
    connection = libvirt.open(uri)
    with contextlib.suppress(libvirt.libvirtError):
        connection.lookupByUUIDString(uuid).blockStats("fda")
    connection.close()


@contextlib.contextmanager
def paused(lab: Lab, *args: str) -> Iterator[Service]:
    """Have a host that is out of balance, a run that was paused and killed, and the next one."""
    crowd(lab)
    # It must not balance them while the verb starts.
    with running(lab, "0.5", VCPUSCHED_BALANCE_THRESHOLD="100") as first:
        first.wait("its directory", first.run_directory.exists)
        assert first.ask("pause").returncode == 0
        first.process.kill()
        first.process.wait()
        with first.succeeded(lab.uri, "0.5", *args) as service:
            yield service


def test_a_pause(lab: Lab) -> None:
    """Begun by the verb: nothing is pinned, also by the next run, until the time is over."""
    with paused(lab) as service:
        service.wait("a plan", lambda: bool((service.state.get("plan") or {}).get("moves")))
        service.wait_cycles(6)
        assert service.pins == 0
        assert service.status.startswith('Paused until "vcpusched resume". Unbalanced, gap')
        assert service.ask("status").returncode == 0
        assert len(service.lines("nothing is pinned")) == 1
        assert service.ask("pause", "--for", "3s").returncode == 0
        pinned(service, 2)
        assert len(service.lines("Balancing resumed")) == 1
        assert are_all_on_0(lab) is False


def test_one_decision_while_paused(lab: Lab) -> None:
    """`run --once` plans, says that it is paused, and ends without a pin."""
    with paused(lab, "--once") as service:
        assert service.process.wait(30) == 0
        assert service.lines('Paused until "vcpusched resume". Unbalanced, gap')
        assert not service.lines(": pinned ")
    assert are_all_on_0(lab)


def test_a_neighbour_appears(lab: Lab) -> None:
    """A guest that may use both pCPUs was bound to pCPU 0 by us; a hog comes to the same.

    There it waits while pCPU 1 idles, so it may use both again. Which pin was ours is taken from
    the ledger of a run before, written here.
    """
    ours = lab.add_guest("ours", [0.6])
    with running(lab, "0.5") as service:
        service.wait_cycles(1)
        service.process.kill()
        service.process.wait()
        ours.pin(0)
        record = {"vcpu": 0, "run_ns": 1, "affinity": "0", "original": "0-1"}
        domain = {"name": "ours", "uuid": ours.domain().UUIDString(), "id": ours.domain().ID()}
        kept = {"version": 1, "domains": [{**domain, "vcpus": [record]}]}
        (service.run_directory / "affinity.json").write_text(json.dumps(kept))
        # No plan of the service's is to be first: what is freed does not wait for one.
        with service.succeeded(lab.uri, "0.5", VCPUSCHED_MIN_GAIN="100") as again:
            again.wait_cycles(3)
            assert ours.affinity(0) == {0}
            lab.add_guest("hog", [1.0], pin=0)
            with again.crowded(0):
                output = ("Unpinned vCPU 0 of ours", "pCPU 0 -> pCPUs 0-1", "idled")
                again.wait("freed", lambda: bool(again.lines(*output)))
                again.wait_cycles(3)
            assert ours.affinity(0) == {0, 1}
            assert "ours" not in ledger(again)


def mark(guest: Guest) -> str:
    """Give the mark in a running guest's metadata; nothing where there is none."""
    root = ET.fromstring(guest.domain().XMLDesc(0))  # noqa: S314  libvirtd made it
    found = root.find(f"metadata/{{{ORIGIN}}}origin")
    return "" if found is None else ET.tostring(found, encoding="unicode")


def test_marks(lab: Lab) -> None:
    """Who is pinned bears a mark, and loses it when the service stops; definitions have none."""
    crowd(lab)
    with running(lab, "0.5") as service:
        pinned(service, 2)
        for guest in lab.guests.values():
            assert ('vcpu id="0" cpus="0"' in mark(guest)) == (guest.affinity(0) == {1})
            assert ORIGIN not in guest.domain().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        service.terminate()
        assert not any(mark(guest) for guest in lab.guests.values())


def test_a_guest_that_was_saved_with_our_pin(lab: Lab) -> None:
    """It wakes with pin and mark while another service looks: adopted, and restored."""
    crowd(lab)
    with running(lab, "0.5", VCPUSCHED_ON_STOP="leave") as service:
        pinned(service, 2)
        service.terminate()
        guest = moved(lab)
        guest.save()
        (service.run_directory / "affinity.json").unlink()  # as on another host
        guest.start()
        assert guest.affinity(0) == {1}
        with service.succeeded(lab.uri, "0.5", VCPUSCHED_ON_STOP="restore") as later:
            later.wait_cycles(3)
            assert ledger(later)[guest.name]["original"] == "0"
            later.terminate()
        assert are_all_on_0(lab)
        assert not mark(guest)


def test_a_guest_wakes_beside_the_service(lab: Lab) -> None:
    """Ten times from a managed save, sampled twice a second: our pin is known as ours each time.

    Its threads are wide for a moment before libvirt applies the pin that was saved.
    """
    crowd(lab)
    with running(lab, "0.5") as service:
        pinned(service, 2)
        guest = moved(lab)
        for _ in range(10):
            guest.save()
            guest.start()
            service.wait_cycles(3)
            assert not service.lines("Someone else")
            assert ledger(service)[guest.name]["original"] == "0"
            assert mark(guest)
        service.terminate()
        assert are_all_on_0(lab)
        assert not mark(guest)


def test_a_person_pins_a_guest_that_has_just_come(lab: Lab) -> None:
    """With our pin and mark: what the person chose is held, and never taken for ours."""
    guest = lab.add_guest("g", [0.05])
    host = LibvirtHost(lab.uri)
    (found,) = host.sample().domains
    ours = {0: Origin(CpuSet.parse("0-1"), frozenset({CpuSet.of([1])}))}
    host.mark(found.uuid, found.domain_id, ours)
    host.close()
    guest.pin(1)
    with running(lab, "0.5") as service:
        service.wait_cycles(2)
        guest.pin(0)
        service.wait("held", lambda: bool(service.lines("Someone else pinned", guest.name)))
        assert f"{guest.name} stays: pinned to pCPU 0 by someone else" in status(service)
        assert "original" not in ledger(service)[guest.name]
        service.wait("no mark", lambda: not mark(guest))
        service.terminate()
        assert guest.affinity(0) == {0}


def test_a_mark_is_known_as_it_was_written(lab: Lab) -> None:
    """By the next sample, without another reading; to take away what is not there is no error."""
    lab.add_guest("g", [0.05], pin=0)
    host = LibvirtHost(lab.uri)
    (found,) = host.sample().domains
    written = {0: Origin(CpuSet.of([0]), frozenset({CpuSet.of([1])}))}
    for origin in (written, {}, {}):
        host.mark(found.uuid, found.domain_id, origin)
        assert host.sample().domains[0].definition.origin == origin
        assert host.definition(found.uuid).origin == origin
    host.close()


def test_restore_after_a_reboot(lab: Lab) -> None:
    """The run directory is new, a guest that was saved wakes with pin and mark: it is found."""
    crowd(lab)
    with running(lab, "0.5", VCPUSCHED_ON_STOP="leave") as service:
        pinned(service, 2)
        service.terminate()
        guest = moved(lab)
        guest.save()
        for path in service.run_directory.iterdir():
            path.unlink()
        guest.start()
        assert guest.affinity(0) == {1}
        done = service.ask("restore", "--uri", lab.uri)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Restored vCPU 0 of {guest.name}: pCPU 1 -> pCPU 0\n" in done.stdout
        assert are_all_on_0(lab)
        assert not any(mark(each) for each in lab.guests.values())


def test_a_definition_made_of_a_running_guest(lab: Lab) -> None:
    """Some managers make it of the live one: our pin in it does not bind the guest there."""
    crowd(lab, 2)
    with running(lab, "0.5", VCPUSCHED_ON_STOP="leave") as service:
        pinned(service, 1)
        service.terminate()
        guest = moved(lab)
        lab.connection().defineXML(guest.domain().XMLDesc(0))
        (service.run_directory / "affinity.json").unlink()
        with service.succeeded(lab.uri, "0.5") as later:
            later.wait_cycles(3)
            assert "its definition allows no other managed pCPU" not in status(later)
            assert f"May be moved: {', '.join(sorted(lab.guests))}" in status(later)


def test_a_guest_with_a_job_is_not_pinned(lab: Lab) -> None:
    """While it is saved: it is left alone, the others are pinned, and no cycle waits for it."""
    crowd(lab, 5)
    # Two periods are left until it pins.
    with running(lab, "2", VCPUSCHED_LOG_LEVEL="debug") as service:
        service.wait_cycles(1)
        hangs = lab.guests["g0"]
        os.kill(hangs.pid, signal.SIGSTOP)
        asker = threading.Thread(target=ask_its_monitor, args=(lab.uri, hangs.uuid), daemon=True)
        try:
            asker.start()
            pinned(service, 2)
            assert hangs.affinity(0) == {0}
            assert not mark(hangs)
        finally:
            os.kill(hangs.pid, signal.SIGCONT)
        asker.join()


def test_guests_come_and_go(lab: Lab) -> None:
    """Ten start and end, one as soon as the next is there; of the first two some are pinned.

    The service says nothing that an administrator would have to act on, and knows in the end only
    who runs.
    """

    def start(index: int) -> None:
        lab.add_guest(f"g{index}", [0.05, 0.03], pin=0, persistent=index % 2 == 0)

    start(0)
    start(1)
    with running(lab, "0.5", VCPUSCHED_LOG_LEVEL="warning") as service:
        pinned(service, 1)
        for index in range(2, 10):
            start(index)
            lab.guests[f"g{index - 2}"].destroy()
        service.wait_cycles(4)
        assert service.warnings() == []
        assert set(ledger(service)) <= {"g8", "g9"}
        assert service.state["domains"] == 2
        service.terminate()
        for name in ("g8", "g9"):
            assert [lab.guests[name].affinity(vcpu) for vcpu in (0, 1)] == [{0}, {0}]


def test_nothing_is_pinned_while_a_guest_migrates(lab: Lab) -> None:
    """Nor while it is saved, for libvirt all one: refused at once, where it would wait.

    The host that it goes to takes the connection and never answers, so it is under way for as long
    as we like.
    """
    guest = lab.add_guest("g", [0.05], pin=0)
    host = LibvirtHost(lab.uri)
    (found,) = host.sample().domains
    vcpu = VcpuId(found.uuid, found.domain_id, 0)
    pins = frozenset({CpuSet.of([1])})
    mute, path = socket.socket(socket.AF_UNIX), lab.directory / "mute"
    mute.bind(str(path))
    path.chmod(0o666)  # for the lab's user
    mute.listen()
    migrate = threading.Thread(target=migrate_to, args=(lab.uri, guest.uuid, path), daemon=True)
    migrate.start()
    peer, _ = mute.accept()
    try:
        with pytest.raises(BusyError, match="is being migrated, saved or the like"):
            host.pin(vcpu, CpuSet.of([1]))
        with pytest.raises(BusyError, match="is being migrated, saved or the like"):
            host.mark(vcpu.uuid, vcpu.domain_id, {0: Origin(CpuSet.of([0]), pins)})
        assert migrate.is_alive()
    finally:
        peer.close()
        mute.close()
        migrate.join()
    host.pin(vcpu, CpuSet.of([1]))
    assert guest.affinity(0) == {1}
    host.close()


def migrate_to(uri: str, uuid: str, path: Path) -> None:
    """Have a guest migrated to the libvirtd that listens there; ends when that fails."""
    connection = libvirt.open(uri)
    flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE
    with contextlib.suppress(libvirt.libvirtError):
        connection.lookupByUUIDString(uuid).migrateToURI3(
            f"qemu+unix:///session?socket={path}", {}, flags
        )
    connection.close()
