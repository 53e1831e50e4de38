"""The shape of the package: which module may import which."""

import ast
import graphlib
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
    "metrics": {"model", "planner", "report", "service", "tally", "text"},
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
