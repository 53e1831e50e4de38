"""What all tests share: a loud word on skips, and the figures that tests measured."""

import signal
from collections.abc import Callable, Iterator

import pytest
from lab import Lab

FIGURES: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the release of tests/system be chosen."""
    parser.addoption(
        "--release",
        choices=["bookworm", "trixie"],
        default="bookworm",
        help="the Debian that tests/system boots (default: bookworm)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the place for figures, the fixtures of tests/system, and signals."""
    config.stash[FIGURES] = []
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in the background of a shell: programs that tests start and interrupt inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.import_plugin("booted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a test be tried anew that failed for what it does not test; pytest shows each time.

    One on real guests that ends with DisturbedError, at most twice; one whose emulated machine was
    lost, once, in another machine.
    """
    for item in items:
        if item.path.parent.name == "integration":
            again = pytest.mark.flaky(reruns=2, reruns_delay=10, only_rerun=["DisturbedError"])
            item.add_marker(again)
        elif item.path.parent.name == "system":
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["MachineLostError"]))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give a function that keeps a measured figure for the summary."""
    return request.config.stash[FIGURES].append


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Give a libvirt of its own, removed with all its guests after the test."""
    with Lab() as opened:
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures that were measured."""
    figures = terminalreporter.config.stash[FIGURES]
    if figures:
        terminalreporter.section("measured")
        for line in figures:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail when a test was skipped: a check that did not happen is no pass."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
