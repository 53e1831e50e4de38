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
    "load": {"demand", "house", "model"},
    "kernel": {"model"},
    "definition": {"model"},
    "text": set(),
    "exits": set(),
    "search": set(),
    "frame": {"search"},
    "fill": {"frame", "search"},
    "groups": {"frame", "search"},
    "solve": {"fill", "frame", "groups", "search"},
    "sharing": set(),
    "service": {"model", "sharing", "text"},
    "board": {"frame", "model"},
    "apart": {"board"},
    "arrange": {"board", "frame", "model", "solve"},
    "units": {"model"},
    "near": {"board", "frame", "model"},
    "answer": {"arrange", "board", "model", "text"},
    "planner": {
        "answer",
        "apart",
        "arrange",
        "board",
        "frame",
        "model",
        "near",
        "service",
        "solve",
        "units",
    },
    "hypervisor": {"model"},
    "snapshot": {"model", "planner"},
    "scheduler": {"house", "model", "load", "planner", "hypervisor"},
    "report": {"model", "planner", "scheduler", "snapshot", "text"},
    "capabilities": {"model"},
    "libvirt_host": {"capabilities", "definition", "model", "hypervisor", "kernel"},
    "config": {"house", "load", "model", "planner", "scheduler", "text", "units"},
    "rundir": set(),
    "rivals": set(),
    "journal": {"report"},
    "workload": {"model"},
    "workload_files": {"model", "text", "workload"},
    "generator": {"model", "workload"},
    "machine": set(),
    "outcome": {"model", "workload"},
    "simulator": {"model", "hypervisor", "machine", "outcome", "scheduler", "workload"},
    "explain": {"model", "planner", "text"},
    "display": {"explain", "model", "outcome", "planner", "report", "text", "workload"},
    "worker": {"hypervisor", "planner", "scheduler"},
    "announcer": {"config", "journal", "model", "report", "rundir", "scheduler", "worker"},
}
"""Whoever is not listed (daemon, cli) may import all but what comes after it."""

ONLY_IMPORT_OF = {
    "libvirt": {"libvirt_host"},
    "systemd": {"journal"},
    "rich": {"display"},
    "pydantic": {"config", "snapshot", "workload_files"},
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
    """libvirt, systemd, rich and pydantic are imported only where the design says."""
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
    assert not reached & {"libvirt_host", "journal"}
