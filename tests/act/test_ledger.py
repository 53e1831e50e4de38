"""The ledger as text: whatever is in its file, it is read in full or set aside, and said."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcpusched.act.ledger import RESETS_MAX, Entry, Hold, Ledger, Record
from vcpusched.act.ledger_file import Book, LedgerError, parse
from vcpusched.host.hypervisor import NotRecordedError
from vcpusched.model import CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Move
from vcpusched.service.run_directory import SIZE_MAX, LedgerFile

SETS = st.sets(st.integers(0, 300), min_size=1).map(CpuSet.of)
RECORDS = st.builds(
    Record,
    SETS,
    st.none() | SETS,
    st.none() | SETS,
    st.none() | st.sampled_from(Hold),
    st.integers(0, RESETS_MAX),
)
RUNS = st.tuples(RECORDS, st.integers(0, 1 << 60))
ENTRIES = st.builds(
    lambda entry, runs: dataclasses.replace(
        entry,
        records={vcpu: record for vcpu, (record, _run_ns) in runs.items()},
        runs_ns={vcpu: run_ns for vcpu, (_record, run_ns) in runs.items()},
    ),
    st.builds(
        Entry,
        st.text(),
        st.integers(-1, 1 << 30),
        held=st.booleans(),
        marked=st.booleans(),
        uri=st.sampled_from(["", "qemu:///system"]),
    ),
    st.dictionaries(st.integers(0, 500), RUNS, max_size=4),
)
LEDGERS = st.dictionaries(
    st.text(min_size=1, max_size=64).map(DomainUuid), ENTRIES, max_size=4
).map(Ledger)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)

FULL: dict[str, Any] = {
    "version": 1,
    "domains": [
        {
            "uuid": "a",
            "name": "shop",
            "id": 3,
            "vcpus": [{"vcpu": 0, "run_ns": 5, "affinity": "1", "original": "0-7"}],
        }
    ],
}


class MemoryStore:
    """Keeps a text in memory."""

    def __init__(self) -> None:
        self.text: str | None = None

    def read(self) -> str | None:
        """Give the text."""
        return self.text

    def replace(self, text: str) -> None:
        """Replace the text."""
        self.text = text

    def set_aside(self) -> str:
        """Refuse: nothing here is ever unusable."""
        raise AssertionError


def times(ledger: Ledger) -> dict[tuple[str, int], int]:
    """Return the CPU time of each vCPU, which entries are not compared by."""
    return {
        (uuid, vcpu): entry.runs_ns[vcpu]
        for uuid, entry in ledger.entries.items()
        for vcpu in entry.records
    }


@given(LEDGERS)
def test_what_is_kept_comes_back(ledger: Ledger) -> None:
    """Whatever the names and sets; what is no pin and no hold is left out."""
    store = MemoryStore()
    Book(store).save(ledger)
    expected = {
        uuid: dataclasses.replace(
            entry,
            records={
                vcpu: record
                for vcpu, record in entry.records.items()
                if entry.held
                or entry.marked
                or record.original is not None
                or record.held is not None
            },
        )
        for uuid, entry in ledger.entries.items()
        if entry.is_kept()
    }
    found = Book(store).ledger
    assert found == Ledger(expected)
    assert times(found) == times(Ledger(expected))


@given(st.text() | JSON.map(json.dumps))
def test_other_texts_are_refused_in_one_line(text: str) -> None:
    """Any text is a ledger or gives one error."""
    try:
        parse(text)
    except LedgerError as error:
        assert str(error)  # noqa: PT017  the error itself is what is looked at


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 2),
        ("domains", {}),
        ("domains.0.uuid", ""),
        ("domains.0.id", "3"),
        ("domains.0.id", True),
        ("domains.0.vcpus.0.run_ns", -1),
        ("domains.0.vcpus.0.run_ns", 1e3),
        ("domains.0.vcpus.0.affinity", ""),
        ("domains.0.vcpus.0.affinity", "0-99999999999"),
        ("domains.0.vcpus.0.original", "x\n"),
        ("domains.0.vcpus.0.held", "maybe"),
        ("domains.0.vcpus.0.resets", 9),
    ],
)
def test_each_part_is_checked(path: str, value: object) -> None:
    """What is wrong is named by its place."""
    raw = json.loads(json.dumps(FULL))
    assert parse(json.dumps(raw)).entries
    part = raw
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        part = part[step]
    part[last] = value
    where = path.rpartition(".")[0] or path
    with pytest.raises(LedgerError, match=where.replace(".", r"\.")):
        parse(json.dumps(raw))


def test_a_vcpu_is_listed_once() -> None:
    """A ledger that contradicts itself is none."""
    for part in ("domains", "vcpus"):
        raw = json.loads(json.dumps(FULL))
        listed = raw["domains"] if part == "domains" else raw["domains"][0]["vcpus"]
        listed.append(listed[0])
        with pytest.raises(LedgerError, match="listed twice"):
            parse(json.dumps(raw))


def unusable(path: Path, kind: str) -> None:
    """Put something into the ledger's place that is none."""
    texts = {
        "truncated": json.dumps(FULL)[:-20],
        "foreign": '{"ours": false}',
        "deep": "[" * 100_000,
        "empty": "",
    }
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\x00")
    elif kind == "huge":
        path.touch()
        os.truncate(path, SIZE_MAX + 1)
    else:
        path.write_text(texts[kind])


@pytest.mark.parametrize(
    "kind", ["truncated", "foreign", "deep", "empty", "fifo", "directory", "binary", "huge"]
)
def test_an_unusable_file_is_set_aside(tmp_path: Path, kind: str) -> None:
    """It keeps its content under another name, one line says so, and a new one is begun."""
    for number in (1, 2):
        path = tmp_path / "affinity.json"
        path.unlink(missing_ok=True)
        unusable(path, kind)
        was = os.lstat(path).st_ino
        book = Book(LedgerFile(tmp_path))
        aside = tmp_path / f"affinity.unusable-{number}.json"
        assert os.lstat(aside).st_ino == was
        assert str(aside) in book.problem
        assert book.problem.startswith("The ledger cannot be used (")
        assert len(book.problem.splitlines()) == 1
        assert book.ledger == Ledger()
        record = Record(CpuSet.of([0]))
        book.ledger = Ledger({DomainUuid("b"): Entry("b", 1, {0: record})})
        vcpu = VcpuId(DomainUuid("b"), 1, 0)
        book.save(book.ledger.intending(Move(vcpu, "b", CpuSet(), CpuSet.of([1]), 0, "")))
        assert Book(LedgerFile(tmp_path)).ledger.entries


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Where the ledger should be there is a link to elsewhere: nothing is read, nothing written."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / "affinity.json").symlink_to(elsewhere)
    book = Book(LedgerFile(tmp_path))
    assert "no pin is made" in book.problem
    with pytest.raises(NotRecordedError, match="not ours"):
        book.save(Ledger({DomainUuid("a"): Entry("a", 1, {}, held=True)}))
    assert elsewhere.read_text() == "precious"


def test_what_was_not_written_is_not_relied_on(tmp_path: Path) -> None:
    """A write that fails leaves the ledger as it was, in memory and in the file."""
    book = Book(LedgerFile(tmp_path))
    first = Ledger({DomainUuid("a"): Entry("a", 1, {}, held=True)})
    book.save(first)
    text = (tmp_path / "affinity.json").read_text()
    (tmp_path / f".affinity.json.{os.getpid()}").mkdir()  # where the new file would be written
    with pytest.raises(NotRecordedError):
        book.save(Ledger())
    assert book.ledger == first
    assert (tmp_path / "affinity.json").read_text() == text


def test_who_only_reads_changes_nothing(tmp_path: Path) -> None:
    """`plan` beside an unusable ledger leaves it where it is."""
    path = tmp_path / "affinity.json"
    path.write_text("{")
    book = Book(LedgerFile(tmp_path), writes=False)
    assert book.problem
    with pytest.raises(NotRecordedError, match="not ours"):
        book.save(Ledger({DomainUuid("a"): Entry("a", 1, {}, held=True)}))
    assert [found.name for found in tmp_path.iterdir()] == ["affinity.json"]


def on_each_fsync(what: Callable[[], None], action: Callable[[], None]) -> None:
    """Do something, and something else just before each fsync that this makes.

    The interpreter itself reports each call of its own functions (sys.setprofile).
    """

    def told(_frame: FrameType, event: str, function: object) -> None:
        if event == "c_call" and function is os.fsync:
            action()

    before = sys.getprofile()
    sys.setprofile(told)
    try:
        what()
    finally:
        sys.setprofile(before)


def test_it_is_on_disk_before_it_is_relied_on(tmp_path: Path) -> None:
    """First what is in the new file, before it has the name; then the directory, when it has.

    What is synced is what is open there at that time. A crash of the machine shows either text.
    """
    book = Book(LedgerFile(tmp_path))
    book.save(Ledger({DomainUuid("a"): Entry("a", 1, {}, held=True)}))
    path = tmp_path / "affinity.json"
    old = path.read_text()
    seen: list[tuple[str, str, str]] = []

    def look() -> None:
        links = list(Path("/proc/self/fd").iterdir())  # that which lists them is closed by now
        opened = [link.readlink() for link in links if os.path.lexists(link)]
        (synced,) = [found for found in opened if found.is_relative_to(tmp_path)]
        in_it = "" if synced.is_dir() else synced.read_text()
        seen.append((synced.name, in_it, path.read_text()))

    on_each_fsync(lambda: book.save(Ledger({DomainUuid("b"): Entry("b", 1, {}, held=True)})), look)
    new = path.read_text()
    assert seen == [(f".affinity.json.{os.getpid()}", new, old), (tmp_path.name, "", new)]
    assert old != new
