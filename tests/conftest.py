"""What all tests share: a loud word on skips, and the figures that tests measured."""

from collections.abc import Callable, Iterator

import pytest
from lab import Lab

FIGURES: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the place for figures."""
    config.stash[FIGURES] = []


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
