"""The planner of any commit, in this process, beside the one of this tree.

Rule: both sides get the same hosts and the same wishes, each in its own classes and by its own
names, and only the call of its planner is timed. What does not come back as it was is refused.

Approach: the package of the commit is unpacked under another name, with its imports rewritten.
    Values are converted by the fields that both sides have. Policies are never converted: each side
    makes its own from its own settings, so that "as shipped" means what that commit shipped.
"""

import contextlib
import dataclasses
import enum
import functools
import gc
import importlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from arguments import TOP

from vcpusched.model import Host
from vcpusched.plan.planner import Plan
from vcpusched.simulate.workload import Workload

PACKAGE: Final = "vcpusched"

MODULES: Final = {
    "model": ("model",),
    "planner": ("plan.planner", "planner"),
    "cycle": ("act.cycle", "scheduler"),
    "simulator": ("simulate.simulator", "simulator"),
    "workload": ("simulate.workload", "workload"),
    "settings": ("settings", "config"),
}
"""Where each module is, by what it is for: the newest name first."""

FORMER: Final = {
    "pin_to": "granularity",
    "max_moves": "moves_max",
    "fair_shares": "service_check",
}
"""Settings that have had two names: the later one, and the one before."""

_OWN_IMPORT: Final = re.compile(rf"^(\s*(?:from|import) ){PACKAGE}\b", re.MULTILINE)

Planner = Callable[[Host], tuple[Plan, int]]
"""What every competitor is: it returns a plan and the CPU time of planning alone, in ns."""


@dataclass(frozen=True, slots=True)
class Service:
    """How many plans and pins the service made, and the CPU time of each of its cycles."""

    plans: int
    pins: int
    cycles_ns: tuple[int, ...]


class _Clock:
    """A scheduler of either side, each cycle of which is timed."""

    def __init__(self, scheduler: Any) -> None:  # noqa: ANN401  the side's Scheduler
        self._scheduler = scheduler
        self.took_ns: list[int] = []

    def cycle(self, *said: Any, **more: Any) -> Any:  # noqa: ANN401  the side's Cycle
        began_ns = time.process_time_ns()
        cycle = self._scheduler.cycle(*said, **more)
        self.took_ns.append(time.process_time_ns() - began_ns)
        return cycle


@dataclass(frozen=True, slots=True)
class Side:
    """A commit by the name that tables give it and the name of its package."""

    name: str
    package: str

    def settings(self, **wishes: object) -> Any:  # noqa: ANN401  the side's Settings
        """Return the settings as that commit ships them, but for wishes by their latest names.

        A setting that the commit does not have under either name is left out.
        """
        kind = _of("settings", "Settings", self.package)
        known = kind.model_fields
        named = {
            name if name in known else FORMER.get(name, name): wish for name, wish in wishes.items()
        }
        return kind(**{name: wish for name, wish in named.items() if name in known})

    def planner(self, **wishes: object) -> Planner:
        """Return its planner with these settings, as a competitor."""
        policy, plan = self.settings(**wishes).policy(), _of("planner", "plan", self.package)
        return timed(lambda host: plan(host, policy), self)

    def converted(self, value: Host | Workload) -> Any:  # noqa: ANN401  the side's class
        """Return a value in the side's classes; refuse one of which it would lose something."""
        there = convert(value, self.package)
        if convert(there, PACKAGE) != value:
            raise ValueError(f"{self.name} does not know all that a {type(value).__name__} says")
        return there

    def service(self, workload: Workload, **wishes: object) -> Service:
        """Run the side's service on its simulated host."""
        clock = _Clock(_of("cycle", "Scheduler", self.package)())
        result = _of("simulator", "simulate", self.package)(
            self.converted(workload), clock, self.settings(**wishes).rules()
        )
        plans = sum(period.planned for period in result.periods)
        return Service(plans, len(result.pins), tuple(clock.took_ns))


HERE: Final = Side("now", PACKAGE)


def timed(rule: Callable[[Any], Any], side: Side = HERE) -> Planner:
    """Return a competitor that plans by a rule of a side."""

    def planner(host: Host) -> tuple[Plan, int]:
        theirs = side.converted(host)
        gc.disable()  # garbage of other work must not count
        try:
            began_ns = time.process_time_ns()
            found = rule(theirs)
            took_ns = time.process_time_ns() - began_ns
        finally:
            gc.enable()
        return convert(found, PACKAGE), took_ns

    return planner


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Unpack the package of a commit into a folder, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-against-") as directory:
        git = ["git", "-c", "safe.directory=*", "-C", str(TOP), "archive", commit, PACKAGE]
        archive = subprocess.run(git, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", directory], check=True, input=archive)
        yield Path(directory)


@contextlib.contextmanager
def beside(commit: str) -> Iterator[Side]:
    """Make the package of a commit importable for as long as the block runs."""
    with checked_out(commit) as tree, renamed(tree, commit) as side:
        yield side


@contextlib.contextmanager
def renamed(tree: Path, name: str) -> Iterator[Side]:
    """Make the package in a folder importable under another name; its text is changed there."""
    package = f"{PACKAGE}_{re.sub(r'[^0-9A-Za-z]', '_', name)}"
    (tree / PACKAGE).rename(tree / package)
    for path in (tree / package).rglob("*.py"):
        path.write_text(_OWN_IMPORT.sub(rf"\1{package}", path.read_text()))
    sys.path.insert(0, str(tree))
    try:
        yield Side(name, package)
    finally:
        sys.path.remove(str(tree))
        for module in [module for module in sys.modules if module.partition(".")[0] == package]:
            del sys.modules[module]
        _class.cache_clear()


def convert(value: Any, package: str) -> Any:  # noqa: ANN401  any value of either side
    """Return a value in the classes of a package, by the fields that its classes know."""
    if type(value) is tuple:
        return tuple(convert(one, package) for one in value)
    is_value = isinstance(value, enum.Enum | tuple) or dataclasses.is_dataclass(value)
    if not is_value or type(value).__module__.partition(".")[0] == package:
        return value
    kind = _class(type(value).__name__, package)
    if isinstance(value, enum.Enum):
        return kind(value.value)
    known = _fields(kind)
    names = [name for name in _fields(type(value)) if name in known]
    return kind(**{name: convert(getattr(value, name), package) for name in names})


def _fields(kind: Any) -> tuple[str, ...]:  # noqa: ANN401  a dataclass or a named tuple
    named: tuple[str, ...] | None = getattr(kind, "_fields", None)
    return named or tuple(field.name for field in dataclasses.fields(kind) if field.init)


@functools.cache
def _class(name: str, package: str) -> Any:  # noqa: ANN401  the package's class of that name
    for module in ("model", "planner", "workload"):
        with contextlib.suppress(LookupError):
            return _of(module, name, package)
    raise ValueError(f"{package} has no class {name}")


def _of(module: str, name: str, package: str) -> Any:  # noqa: ANN401  the side's
    for path in MODULES[module]:
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(f"{package}.{path}"), name)
    raise LookupError(f"{package} has no {module}.{name} under any name that is known here")
