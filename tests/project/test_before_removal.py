"""What is done before the program is removed, whatever is broken then."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from vcpusched.act.ledger import Entry, Ledger, Record
from vcpusched.act.ledger_file import Book
from vcpusched.model import CpuSet, DomainUuid
from vcpusched.service.run_directory import LedgerFile

SCRIPT: Final = Path(__file__).parents[2] / "packaging/before-removal"
UUIDS: Final = tuple(DomainUuid(f"00faba3f-1377-4523-9abb-9cf8e534c62{n}") for n in range(4))
URI: Final = "qemu:///session?socket=/run/a%20b&x=1"


def record(affinity: str, original: str | None = None, pending: str | None = None) -> Record:
    """Give a record of a vCPU."""

    def cpus(text: str | None) -> CpuSet | None:
        return CpuSet.parse(text) if text is not None else None

    return Record(CpuSet.parse(affinity), cpus(original), cpus(pending))


LEDGER: Final = Ledger(
    {
        UUIDS[0]: Entry(
            'a "{"uuid":"x","uri":"y"',
            1,
            {0: record("1", "0-3,8", "2"), 1: record("4"), 64: record("0-1", "5")},
            held=True,
            uri=URI,
        ),
        UUIDS[1]: Entry("b\n{\\", 2, {0: record("1")}, held=True, uri="qemu:///system"),
        UUIDS[2]: Entry("c", 3, {3: record("1", "0", "0")}),
        UUIDS[3]: Entry("d", 3, {3: record("1", "0")}, uri='qemu:///"; reboot; "'),
    }
)
"""Three pins in the ledger of two guests, a guest that is only held, and one that is a trap."""

COMMANDS: Final = [
    f'virsh --connect "{URI}" vcpupin {UUIDS[0]} 0 0-3,8 --live',
    f'virsh --connect "{URI}" vcpupin {UUIDS[0]} 64 5 --live',
    f'virsh --connect "qemu:///system" vcpupin {UUIDS[2]} 3 0 --live',
]


def removed(directory: Path, program: str) -> str:
    """Run the script, which says nothing but warnings; gives these."""
    variables = {**os.environ, "RUNTIME_DIRECTORY": str(directory)}
    command = [str(SCRIPT), program]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run directory with a ledger."""
    directory = tmp_path / "run"
    directory.mkdir()
    Book(LedgerFile(directory)).save(LEDGER)
    return directory


@pytest.mark.parametrize("broken", ["/nowhere", "/dev/null", "false"])
def test_what_could_not_be_restored_is_reported(run: Path, broken: str) -> None:
    """As commands, of all pins that the ledger has and of nothing else; and the ledger stays."""
    kept = (run / "affinity.json").read_text()
    said = removed(run, broken)
    assert [line for line in said.splitlines() if line.startswith("virsh")] == COMMANDS
    assert "Warning: vcpusched could not restore all affinities" in said
    assert (run / "affinity.json").read_text() == kept


def test_nothing_is_left_after_a_restore(run: Path) -> None:
    """Then the run directory goes, without a word."""
    assert removed(run, "true") == ""
    assert not run.exists()


def test_without_a_ledger(tmp_path: Path) -> None:
    """Nothing was pinned since the machine booted; what was saved before then bears its mark."""
    said = removed(tmp_path / "run", "false")
    assert "no ledger names any" in said
    assert "virsh" not in said


def test_a_ledger_that_is_none(run: Path) -> None:
    """It stays, for a person to read."""
    (run / "affinity.json").write_text("{\0{")
    assert "no ledger names any" in removed(run, "false")
    assert (run / "affinity.json").exists()


def test_a_ledger_that_was_cut_off(run: Path) -> None:
    """What can be read of it is reported."""
    whole = (run / "affinity.json").read_text()
    (run / "affinity.json").write_text(whole[: whole.index('"vcpu":64')])
    assert COMMANDS[0] in removed(run, "false")
