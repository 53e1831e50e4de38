"""What all tests share: what a quick run leaves to the full one, and a loud word on skips."""

import os
import signal
from importlib.util import find_spec
from typing import Any

import pytest

BINDINGS = ("libvirt", "systemd")
"""PyPI has these as sources only; a full run takes them from the distribution."""

NEED_BINDINGS = (
    "host/test_libvirt_errors.py",
    "host/test_libvirt_host.py",
    "project/test_live.py",
)
collect_ignore = [] if all(map(find_spec, BINDINGS)) else [*NEED_BINDINGS]

LEFT: pytest.StashKey[int] = pytest.StashKey()
"""How many tests a quick run leaves out."""

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its workers, and output would be folded

SLOWEST = 15
"""So many tests are named at the end of each run: that is where its minutes go."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a part be left to the full run, and the release of tests/system be chosen."""
    parser.addoption(
        "--quick",
        action="store_true",
        help='leave out what is marked "full": long sweeps, and what needs system packages',
    )
    parser.addoption(
        "--release",
        choices=["bookworm", "trixie"],
        default="bookworm",
        help="the Debian that tests/system boots (default: bookworm)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the fixtures of real guests, and signals."""
    config.addinivalue_line(
        "markers", "full: left to the full run, since it takes long or needs system packages"
    )
    config.option.durations = config.option.durations or SLOWEST
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in the background of a shell: programs that tests start and interrupt inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not collect_ignore:
        config.pluginmanager.import_plugin("guests")
        config.pluginmanager.import_plugin("booted")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the full run what is marked so."""
    if config.option.quick:
        left = sum(item.get_closest_marker("full") is not None for item in items)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.stash[LEFT] = left
        if hasattr(config, "workeroutput"):  # that of a worker, on its way to where it is reported
            config.workeroutput["left"] = left


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401  pytest-xdist's
    """Take what a worker left out: each has collected all tests."""
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what a quick run left out."""
    if terminalreporter.config.option.quick:
        left = f"{terminalreporter.config.stash.get(LEFT, 0)} tests"
        files = f", and the files {', '.join(collect_ignore)}" if collect_ignore else ""
        terminalreporter.write_line(f"Left to the full run, tests/run: {left}{files}.")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail when a test was skipped: a check that did not happen is no pass."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
