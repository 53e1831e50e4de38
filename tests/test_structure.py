"""The shape of the package: which module may import which; and what is nowhere in the tree."""

import ast
import graphlib
import re
import subprocess
from pathlib import Path

import vcpusched

PACKAGE = Path(vcpusched.__file__).parent

MAY_IMPORT = {
    "model": set(),
    "demand": {"model"},
    "house": {"units", "model", "text"},
    "track": {"model"},
    "load": {"demand", "house", "model", "track"},
    "kernel": {"model"},
    "definition": {"markup", "model"},
    "text": set(),
    "exits": set(),
    "request": {"rundir"},
    "restore": {"exits", "hypervisor", "keeper", "model", "request", "text"},
    "unit": set(),
    "pause": {"rundir", "text"},
    "undo": {
        "config",
        "exits",
        "hypervisor",
        "keeper",
        "ledger_file",
        "libvirt_host",
        "pause",
        "request",
        "restore",
        "rundir",
        "text",
        "worker",
    },
    "source": {
        "config",
        "exits",
        "hypervisor",
        "keeper",
        "ledger_file",
        "libvirt_host",
        "load",
        "model",
        "rundir",
        "snapshot",
        "text",
        "worker",
    },
    "desk": {"announcer", "report", "request"},
    "search": set(),
    "frame": {"search"},
    "fill": {"frame", "search"},
    "groups": {"frame", "search"},
    "gains": {"frame"},
    "solve": {"fill", "frame", "gains", "groups", "search"},
    "curves": set(),
    "flow": set(),
    "sharing": {"curves", "flow"},
    "service": {"curves", "model", "sharing", "text", "units"},
    "board": {"frame", "model"},
    "apart": {"board"},
    "arrange": {"board", "frame", "gains", "model"},
    "units": {"model"},
    "near": {"board", "frame", "model"},
    "misfit": {"apart", "board", "frame", "near"},
    "answer": {"arrange", "board", "model", "text"},
    "planner": {
        "answer",
        "apart",
        "arrange",
        "board",
        "frame",
        "model",
        "misfit",
        "near",
        "service",
        "solve",
        "units",
    },
    "hypervisor": {"model"},
    "ledger": {"model"},
    "ledger_text": {"ledger", "model"},
    "ledger_file": {"ledger", "ledger_text", "model", "rundir", "text"},
    "marks": {"hypervisor", "ledger", "model"},
    "keeper": {"hypervisor", "ledger", "ledger_file", "marks", "model", "text"},
    "snapshot": {"model", "planner"},
    "proof": {"demand", "model", "planner"},
    "patience": {"model"},
    "scheduler": {"house", "model", "load", "patience", "planner", "proof", "hypervisor"},
    "report": {
        "keeper",
        "pause",
        "ledger",
        "model",
        "planner",
        "proof",
        "scheduler",
        "snapshot",
        "text",
        "units",
    },
    "tally": {"model", "proof", "scheduler"},
    "least": {"model", "planner", "search"},
    "metrics": {"least", "model", "planner", "report", "service", "tally", "text"},
    "markup": set(),
    "capabilities": {"markup", "model"},
    "faults": {"hypervisor"},
    "libvirt_host": {"capabilities", "definition", "faults", "model", "hypervisor", "kernel"},
    "config": {"house", "load", "model", "planner", "scheduler", "text", "units"},
    "rundir": set(),
    "rivals": set(),
    "history": {"model", "proof", "report", "text"},
    "journal": {"history", "report"},
    "workload": {"model"},
    "traces": {"model", "text", "workload"},
    "workload_files": {"model", "text", "traces", "workload"},
    "generator": {"model", "workload"},
    "machine": set(),
    "outcome": {"model", "workload"},
    "simulator": {"model", "hypervisor", "machine", "outcome", "scheduler", "units", "workload"},
    "explain": {"model", "planner", "text"},
    "drawing": {"model", "text"},
    "top": {"drawing", "model", "report", "rundir", "snapshot", "text"},
    "display": {
        "drawing",
        "explain",
        "history",
        "model",
        "outcome",
        "planner",
        "report",
        "snapshot",
        "text",
        "workload",
    },
    "worker": {
        "hypervisor",
        "keeper",
        "ledger",
        "ledger_file",
        "model",
        "planner",
        "request",
        "restore",
        "scheduler",
    },
    "announcer": {
        "config",
        "journal",
        "keeper",
        "ledger",
        "metrics",
        "model",
        "pause",
        "report",
        "rundir",
        "scheduler",
        "tally",
        "units",
        "worker",
    },
}
"""Whoever is not listed (daemon, cli) may import all but what comes after it."""

ONLY_IMPORT_OF = {
    "libvirt": {"faults", "libvirt_host"},
    "systemd": {"journal"},
    "rich": {"display", "drawing", "top"},
    "prometheus_client": {"metrics"},
    "pydantic": {"config", "ledger_text", "snapshot", "workload_files"},
    "pydantic_settings": {"config"},
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Give the modules of ours and the other packages that a module imports anywhere."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            package, _, module = node.module.partition(".")
            if package == "vcpusched":
                ours |= {module} if module else {alias.name for alias in node.names}
            else:
                others.add(package)
        elif isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
    return ours - {"__version__"}, others


MODULES = {path.stem: imports(path) for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def test_data_flows_one_way() -> None:
    """Each module imports no more than the table allows, and there is no circle."""
    for name, (ours, _others) in MODULES.items():
        if name in MAY_IMPORT:
            assert ours <= MAY_IMPORT[name], name
    assert set(MAY_IMPORT) <= set(MODULES)
    graphlib.TopologicalSorter({name: ours for name, (ours, _) in MODULES.items()}).prepare()


def test_each_library_has_one_door() -> None:
    """Libraries are imported only where the design says."""
    for library, modules in ONLY_IMPORT_OF.items():
        assert {name for name, (_, others) in MODULES.items() if library in others} == modules


def test_planning_needs_no_libvirt_and_no_systemd() -> None:
    """What `plan --from` imports reaches neither, however far one follows."""
    reached: set[str] = set()
    open_ends = {"snapshot", "planner", "config", "display"}
    open_ends |= {"simulator", "workload_files", "generator"}
    while open_ends:
        name = open_ends.pop()
        reached.add(name)
        open_ends |= MODULES[name][0] - reached
    assert not reached & {"libvirt_host", "faults", "journal"}


TREE = Path(__file__).parent.parent

PLACES = re.compile(r"(?<![\w.~$})-])/(?:work/|home/\w|Users/\w|root\b)")
"""Where developers have their files."""

OWN_ROOT = ("tests/system/", "contrib/benchmark/live_machine.py")
"""Who may name the home of root: that of the containers and machines which these make."""

SKIPS = {"skip", "skipif", "skipIf", "skipUnless", "skipTest", "SkipTest", "importorskip", "xfail"}


def tracked() -> dict[str, str]:
    """Give the text of each file of the tree that is tracked, by its path in it."""
    # Whoever owns the checkout: fresh machines get it from elsewhere.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if (TREE / name).is_file()]
    return {name: (TREE / name).read_text() for name in names}  # all are text


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
    """No path that only whoever wrote it has."""
    texts = tracked()
    assert "tests/test_structure.py" in texts
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
