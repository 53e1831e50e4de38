"""The hook on incoming guests, as real libvirtds run it: migrations and wakes from saved states."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import libvirt
import pytest
from lab import Guest, Lab

from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.libvirt_host import LibvirtHost
from vcpusched.host.libvirt_xml import ORIGIN
from vcpusched.model import CpuSet, VcpuId
from vcpusched.plan.planner import Move
from vcpusched.service.run_directory import LedgerFile

HOOK: Final = Path(__file__).parents[2] / "packaging/libvirt_hook.py"
LOGS: Final = '#!/bin/sh\necho "$2 $3" "$(cksum)" >>{log}\n'
RENAMES: Final = (
    '#!/bin/sh\ncase "$2" in migrate | restore) sed "s/<title>ours/<title>theirs/" ;; esac\n'
)


@pytest.fixture
def etc() -> Iterator[Path]:
    """Give what libvirtds find in /etc: our hook, as a package installs it."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-") as directory:
        add_hook(Path(directory), "vcpusched", HOOK.read_text())
        Path(directory).chmod(0o755)
        yield Path(directory)


def add_hook(etc: Path, name: str, script: str) -> None:
    """Put a hook into a directory; one that is there before a libvirtd starts is run by it."""
    hook = etc / "libvirt/hooks/qemu.d" / name
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(script)
    hook.chmod(0o755)


def pinned(lab: Lab, directory: Path) -> tuple[Guest, Reconciler]:
    """Give a guest whose vCPUs we pinned to pCPU 1: one from pCPU 0, one from anywhere."""
    guest = lab.add_guest("ours", [0.05, 0.05])
    guest.domain().pinVcpu(0, (True, False))
    keeper = Reconciler(LibvirtHost(lab.uri), Book(LedgerFile(directory)))
    put(keeper, 0, 1)
    assert [guest.affinity(vcpu) for vcpu in (0, 1)] == [{1}, {1}]
    assert ORIGIN in guest.domain().XMLDesc(0)
    return guest, keeper


def put(keeper: Reconciler, *vcpus: int) -> None:
    """Pin vCPUs of the only guest to pCPU 1, as the moves of a plan."""
    (found,) = keeper.sample().domains
    ids = [VcpuId(found.uuid, found.domain_id, vcpu) for vcpu in vcpus]
    keeper.intend([Move(vcpu, found.name, CpuSet(), CpuSet.of([1]), 0, "") for vcpu in ids])
    for vcpu in ids:
        keeper.pin(vcpu, CpuSet.of([1]))


def migrate(guest: Guest, to: Lab) -> None:
    """Have a guest migrated, live, from libvirtd to libvirtd."""
    flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE
    where = {libvirt.VIR_MIGRATE_PARAM_URI: "tcp:127.0.0.1"}
    guest.domain().migrateToURI3(to.uri.replace("qemu:", "qemu+unix:"), where, flags)


def is_as_before(guest: Guest, lab: Lab) -> bool:
    """Return whether a guest runs there as it did before we pinned it, with no trace of that."""
    domain = lab.connection().lookupByUUIDString(guest.uuid)
    assert [guest.affinity(vcpu) for vcpu in (0, 1)] == [{0}, {0, 1}]
    assert domain.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE) == [(True, False), (True, True)]
    return "vcpupin vcpu='1'" not in (xml := domain.XMLDesc(0)) and ORIGIN not in xml


def test_a_guest_that_migrates(etc: Path, qemu_cache: Path, tmp_path: Path) -> None:
    """It has its originals where it arrives, and nobody there or here has a record of our pins."""
    with Lab(cache=qemu_cache, etc=etc) as here, Lab(cache=qemu_cache, etc=etc) as there:
        guest, keeper = pinned(here, tmp_path)
        assert "ours" in (tmp_path / "affinity.json").read_text()
        migrate(guest, there)
        assert is_as_before(guest, there)
        keeper.sample()
        keeper.settle()
        assert "ours" not in (tmp_path / "affinity.json").read_text()
        (tmp_path / "there").mkdir()
        host = LibvirtHost(there.uri)
        assert Reconciler(host, Book(LedgerFile(tmp_path / "there"))).restore() == []


def test_a_guest_that_wakes(etc: Path, qemu_cache: Path, tmp_path: Path) -> None:
    """Beside the process that pinned it: the record of that ends, and it may be pinned again."""
    with Lab(cache=qemu_cache, etc=etc) as lab:
        guest, keeper = pinned(lab, tmp_path)
        for _ in range(2):
            guest.save()
            guest.start()
            assert is_as_before(guest, lab)
            (found,) = keeper.sample().domains
            assert [vcpu.ours for vcpu in found.vcpus] == [False, False]
            keeper.settle()
            assert "ours" not in (tmp_path / "affinity.json").read_text()
            put(keeper, 1)


def test_beside_other_hooks(etc: Path, qemu_cache: Path, tmp_path: Path) -> None:
    """One before that changes the XML, too, and one behind that only reads: each has its say.

    What prints nothing changes nothing: the last one reads what libvirt takes.
    """
    log = etc / "log"
    log.touch()
    log.chmod(0o666)
    add_hook(etc, "10-renames", RENAMES)
    add_hook(etc, "zz-logs", LOGS.format(log=log))
    with Lab(cache=qemu_cache, etc=etc) as lab:
        guest, _keeper = pinned(lab, tmp_path)
        guest.domain().setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "ours", None, None, 1)
        guest.save()
        guest.start()
        assert is_as_before(guest, lab)
        assert "theirs" in guest.domain().XMLDesc(0)
        assert [line.split(" ")[:2] for line in log.read_text().splitlines()].count(
            ["restore", "begin"]
        ) == 1


@pytest.mark.parametrize("why", ["no Python", "no such pCPU"])
def test_doubt_fails_no_wake(why: str, etc: Path, qemu_cache: Path, tmp_path: Path) -> None:
    """The guest wakes with pin and mark: by these the next vcpusched restores it all the same."""
    if why == "no Python":
        add_hook(etc, "vcpusched", HOOK.read_text().replace("/usr/bin/python3", "/nowhere"))
    with Lab(cache=qemu_cache, etc=etc) as lab:
        guest, _keeper = pinned(lab, tmp_path)
        if why == "no such pCPU":
            mark = '<origin><vcpu id="0" cpus="0,999" pins="1"/></origin>'
            element = libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark, "v", ORIGIN, 1
            guest.domain().setMetadata(*element)
        guest.save()
        guest.start()
        assert guest.affinity(0) == {1}
        (tmp_path / "affinity.json").unlink()
        Reconciler(LibvirtHost(lab.uri), Book(LedgerFile(tmp_path))).restore()
        assert guest.affinity(0) == {0}
        assert ORIGIN not in guest.domain().XMLDesc(0)


def test_without_the_hook(qemu_cache: Path, tmp_path: Path) -> None:
    """A guest arrives with pin and mark, and who runs there knows the pin for ours."""
    with tempfile.TemporaryDirectory() as nothing:
        Path(nothing).chmod(0o755)
        with (
            Lab(cache=qemu_cache, etc=Path(nothing)) as here,
            Lab(cache=qemu_cache, etc=Path(nothing)) as there,
        ):
            guest, _keeper = pinned(here, tmp_path)
            migrate(guest, there)
            assert [guest.affinity(vcpu) for vcpu in (0, 1)] == [{1}, {1}]
            (tmp_path / "there").mkdir()
            host = LibvirtHost(there.uri)
            given = Reconciler(host, Book(LedgerFile(tmp_path / "there"))).restore()
            assert [str(one.move.to_cpus) for one in given] == ["0", "0-1"]
            assert [guest.affinity(vcpu) for vcpu in (0, 1)] == [{0}, {0, 1}]
