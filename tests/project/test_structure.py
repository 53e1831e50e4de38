"""The shape of the package: rooms, what each may import, who imports libraries, and lengths."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vcpusched

PACKAGE = Path(vcpusched.__file__).parent
TOP = Path(__file__).parents[2]
ARCHITECTURE = TOP / "contrib/ARCHITECTURE.md"

MAY_IMPORT = {
    "model": set(),
    "sample": {"model"},
    "text": {"model"},
    "host": {"model", "sample", "text"},
    "observe": {"model", "sample", "text"},
    "plan": {"model", "text"},
    "act": {"model", "sample", "text", "observe", "plan", "host.hypervisor"},
    "settings": {"model", "text", "observe", "plan", "act"},
    "report": {"model", "text", "observe", "plan", "act", "settings"},
    "service": {"model", "text", "observe", "plan", "act", "settings", "report"}
    | {"host.hypervisor", "host.checks"},
    "simulate": {"model", "sample", "text", "act", "host.hypervisor", "report.simulation"},
    "cli": {"model", "sample", "text", "host", "observe", "plan", "act", "settings", "report"}
    | {"service", "simulate"},
}
"""For each room or module at the top: the rooms, or single modules of them, that it may import."""

IMPORTERS = {
    "libvirt": {"host.connection", "host.libvirt_host"},
    "systemd": {"service.systemd"},
    "rich": {"cli.top", "cli.top_rows", "report.display", "report.draw"},
    "prometheus_client": {"report.metrics"},
    "pydantic": {
        "act.ledger_file",
        "report.snapshot",
        "report.state_file",
        "settings",
        "simulate.workload_files",
    },
    "pydantic_settings": {"settings"},
}
"""For each library the modules that import it; nothing else does."""

LINES_MAX = 350


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Return the modules of ours and the other packages that a module imports anywhere."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            package, _, module = node.module.partition(".")
            if package != "vcpusched":
                others.add(package)
            elif module in PATHS:
                ours.add(module)
            else:
                room = f"{module}." if module else ""
                ours |= {room + alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
    return ours, others


PATHS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
}
MODULES = {name: imports(path) for name, path in PATHS.items()}


def room_of(name: str) -> str:
    """Return the room that a module is in, or the module at the top itself."""
    return name.partition(".")[0]


def test_each_room_imports_what_it_may() -> None:
    """And no module is imported that there is not."""
    assert {room_of(name) for name in MODULES} == set(MAY_IMPORT)
    for name, (ours, _others) in MODULES.items():
        may = MAY_IMPORT[room_of(name)]
        beyond = {
            other
            for other in ours
            if room_of(other) != room_of(name) and not {other, room_of(other)} & may
        }
        assert not beyond, f"{name} imports {beyond}"
        assert ours <= set(MODULES), name


def test_no_module_imports_itself_in_the_end() -> None:
    """There is no circle, within a room either."""
    graphlib.TopologicalSorter({name: ours for name, (ours, _) in MODULES.items()}).prepare()


def test_a_room_says_what_its_rule_is() -> None:
    """In one docstring, and has no other code in its __init__."""
    for init in PACKAGE.glob("*/__init__.py"):
        (docstring,) = ast.parse(init.read_text()).body
        assert isinstance(docstring, ast.Expr)
        assert "\n\nRule: " in init.read_text()


def test_each_library_is_imported_by_few_modules() -> None:
    """Libraries are imported only where the design says."""
    for library, modules in IMPORTERS.items():
        assert {name for name, (_, others) in MODULES.items() if library in others} == modules


@pytest.mark.full
def test_the_service_keeps_no_library_in_memory_for_others() -> None:
    """What draws or writes metrics is not loaded with what `run` imports."""
    loaded = (
        "import sys, vcpusched.cli.main, vcpusched.settings, vcpusched.host.libvirt_host,"
        " vcpusched.service.daemon; print(*sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", loaded], cwd=TOP, capture_output=True, text=True, check=True
    )
    modules = set(said.stdout.split())
    assert {"libvirt", "pydantic", "vcpusched.service.daemon"} <= modules
    assert not modules & {"rich", "prometheus_client"}


def test_planning_needs_no_libvirt_and_no_systemd() -> None:
    """What `plan --from` and `simulate` import reaches neither, however far one follows."""
    reached: set[str] = set()
    open_ends = {"report.snapshot", "plan.planner", "settings", "report.display"}
    open_ends |= {"simulate.simulator", "simulate.workload_files", "simulate.traces"}
    while open_ends:
        name = open_ends.pop()
        reached.add(name)
        open_ends |= MODULES[name][0] - reached
    assert not reached & (IMPORTERS["libvirt"] | IMPORTERS["systemd"])


def test_no_module_grows_too_long() -> None:
    """At most 350 lines each, so that one is read in a sitting."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in PATHS.items()}
    assert {name for name, length in lengths.items() if length > LINES_MAX} == set()


def test_the_architecture_names_files_that_there_are() -> None:
    """Twenty tasks or more with modules and tests; each module that it speaks of exists."""
    text = ARCHITECTURE.read_text()
    rows = re.findall(r"^\| .+ \| `(vcpusched/\S+)` \| `(tests/\S+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 20
    named = {name for row in rows for name in row}
    rooms = "|".join(sorted({room_of(name) for name in MODULES}))
    named |= {f"vcpusched/{name}" for name in re.findall(rf"`((?:{rooms})/[a-z_]+\.py)`", text)}
    assert [name for name in sorted(named) if not (TOP / name).is_file()] == []
    assert set(re.findall(r"^\| `([a-z]+)/` \|", text, re.MULTILINE)) == {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert "(contrib/ARCHITECTURE.md)" in (TOP / "README.md").read_text()


PLACES = re.compile(r"(?<![\w.~$})-])/(?:work/|home/\w|Users/\w|root\b)")
"""Where developers have their files."""

OWN_ROOT = ("tests/system/", "contrib/benchmark/live/in_machine.py")
"""Who may name the home of root: that of the containers and machines which these make."""

SKIPS = {"skip", "skipif", "skipIf", "skipUnless", "skipTest", "SkipTest", "importorskip", "xfail"}


def tracked() -> dict[str, str]:
    """Give the text of each file of the tree that is tracked, by its path in it."""
    # The checkout may be another user's: fresh machines get it from elsewhere.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if (TOP / name).is_file()]
    return {name: (TOP / name).read_text() for name in names}  # all are text


def words(source: str) -> set[str]:
    """Give the names that a program uses, in any role; what is only in a string is none."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


def test_nothing_names_a_place_on_one_machine() -> None:
    """No path that exists only on its author's machine."""
    texts = tracked()
    assert "tests/project/test_structure.py" in texts
    found = {
        f"{name}: {line.strip()}"
        for name, text in texts.items()
        for line in text.splitlines()
        for place in PLACES.findall(line)
        if not (place.endswith("root") and name.startswith(OWN_ROOT))
    }
    assert found == set()


def test_no_test_is_skipped() -> None:
    """Neither always nor under a condition, nor expected to fail."""
    found = {
        name: skips
        for name, text in tracked().items()
        if name.endswith(".py") and (skips := words(text) & SKIPS)
    }
    assert found == {}
