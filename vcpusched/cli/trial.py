"""The trial: blocks without the service's pins and with them in turn, on this host's own guests.

Rule: only asks the running service. A block without is a pause that ends by itself soon after this
process ends, however it does (`control.Lease`); nothing is held, and other hands are obeyed.
"""

import argparse
import signal
import time
from collections.abc import Callable
from itertools import groupby
from typing import Final, NoReturn

from vcpusched.cli import sources, undo
from vcpusched.host.libvirt_host import LibvirtHost
from vcpusched.model import PPM
from vcpusched.observe.intervals import intervals
from vcpusched.report import display
from vcpusched.report.confidence import PAIRS_MIN
from vcpusched.report.state_file import SavedState
from vcpusched.report.trial_verdict import (
    PAIRS_FOR_VERDICT,
    Block,
    GuestRun,
    Used,
    judge,
    order,
)
from vcpusched.sample import Sample
from vcpusched.service import control, exits, run_directory
from vcpusched.settings import Settings
from vcpusched.text import counted, printable

PERIODS_MIN: Final = 20
"""Of a block; the loads that the service plans by are averages of some."""

HALF_LIVES: Final = 2
"""At the beginning of each block so many are left out: the block before is in the averages."""

ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What breaks a trial off."""

LOOK_S: Final = 5.0
"""How often the service is looked at, and the pause of a block without renewed."""


class _BrokenOffError(Exception):
    """The trial cannot go on; the text says why."""


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Carry it out, show what came of it, and return the exit status. Raises Refusal."""
    total_s = control.seconds_of("--for", options.time)
    block_s = control.seconds_of("--block", options.block)
    began = _service()
    rest_s = HALF_LIVES * settings.half_life
    least_s = max(PERIODS_MIN * began.period, 2 * rest_s, settings.cooldown)
    if block_s < least_s:
        line = (
            f"--block: {options.block} is too short: must be at least {least_s:g}s"
            f" ({PERIODS_MIN} periods, twice the {rest_s:g}s that are left out, and cooldown)"
        )
        raise exits.Refusal(exits.USAGE, line)
    pairs = int(total_s // (2 * block_s))
    if pairs < PAIRS_MIN:
        line = (
            f"--for: {options.time} has fewer than {PAIRS_MIN} pairs of blocks of {options.block}"
        )
        raise exits.Refusal(exits.USAGE, line)
    directory = run_directory.locate()
    if began.dry_run or control.read_pause(directory) is not None:
        why = "dry_run is set" if began.dry_run else 'it is paused ("vcpusched resume" ends that)'
        raise exits.Refusal(exits.FAILURE, f"the service changes no pin: {why}")
    lease = control.Lease(directory)
    try:
        lease.begin()
    except OSError as error:
        raise undo.unwritable(directory, error) from None
    blocks = []
    try:
        _handle_endings(_interrupted)
        ends = time.strftime("%H:%M", time.localtime(time.time() + pairs * 2 * block_s))
        few = f" (a verdict takes {PAIRS_FOR_VERDICT})" if pairs < PAIRS_FOR_VERDICT else ""
        exits.say(
            f"{counted(pairs, 'pair')} of blocks of {options.block}{few}, until {ends};"
            " Ctrl-C ends it, and the service goes on"
        )
        with display.progress("Trial", pairs * 2 * int(block_s)) as advance:
            for balances in order(pairs):
                _begin(lease, balances=balances)
                _pass(lease, rest_s, advance, balances=balances)
                before = _read(began.uri)
                _pass(lease, block_s - rest_s, advance, balances=balances)
                after = _read(began.uri)
                blocks.append(Block(balances, _used(before, after)))
                now = _same(began)
        found = judge(blocks, now.pins - began.pins)
    except (_BrokenOffError, run_directory.RunDirectoryError, ValueError, exits.Refusal) as error:
        raise exits.Refusal(exits.FAILURE, f"the trial was broken off: {error}") from None
    finally:
        _handle_endings(signal.SIG_IGN)
        lease.end()
    _handle_endings(signal.SIG_DFL)
    where = f"{options.time} on {printable(began.uri, 200)}"
    display.show(display.draw_trial(found, where))
    return exits.OK


def _handle_endings(handle: Callable[[int, object], NoReturn] | signal.Handlers) -> None:
    """Have what breaks a trial off handled like this."""
    for ending in ENDINGS:
        signal.signal(ending, handle)


def _interrupted(number: int, _frame: object) -> NoReturn:
    _handle_endings(signal.SIG_IGN)  # or a second one would break off the ending itself
    raise _BrokenOffError(f"by {signal.Signals(number).name}; the service goes on")


def _service() -> SavedState:
    """Return what the running service last said of itself. Raises Refusal."""
    live = sources.live()
    if live is None:
        line = f"vcpusched is not running on this host ({run_directory.locate()})"
        raise exits.Refusal(exits.NOT_RUNNING, line)
    return live[1]


def _same(began: SavedState) -> SavedState:
    """Return what the service said last; it must be the process that it was."""
    now = _service()
    if now.pid != began.pid:
        raise _BrokenOffError("the service was restarted")
    return now


def _begin(lease: control.Lease, *, balances: bool) -> None:
    """Begin a block: let the service go on, or pause it and have all its pins restored."""
    if balances:
        lease.end()
        return
    try:
        lease.begin()
        answer = control.ask(lease.directory, control.Request(control.Verb.UNPIN))
    except OSError:
        raise _BrokenOffError("the service does not answer") from None
    if answer is None:
        raise _BrokenOffError("the service ended")
    if answer.problems:
        raise _BrokenOffError(printable(answer.problems[0], 300))


def _pass(
    lease: control.Lease, seconds: float, advance: Callable[[int], None], *, balances: bool
) -> None:
    """Let time pass, and break off if anything comes between."""
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, LOOK_S))
        advance(round(min(left_s, LOOK_S)))
        if not (control.read_pause(lease.directory) is None if balances else lease.renew()):
            raise _BrokenOffError("someone else paused or resumed the service")
        if not run_directory.lives(lease.directory):
            raise _BrokenOffError("the service ended")


def _read(uri: str) -> Sample:
    """Read what all guests have run and waited so far. Raises Refusal."""

    def read() -> Sample:
        host = LibvirtHost(uri, read_only=True)
        found = host.sample()
        host.close()
        return found

    with sources.reached(uri):
        return sources.call_within(sources.SAMPLE_TIMEOUT_S, read)


def _used(before: Sample, after: Sample) -> dict[GuestRun, Used]:
    """Return what those guests had of which the kernel says how long all vCPUs waited."""
    found: dict[GuestRun, Used] = {}
    for domain, vcpus in groupby(intervals(before, after, {}), lambda one: one.domain):
        times = [(one.usage_ppm, one.wait_ppm) for one in vcpus]
        runs = [run for run, _ in times if run is not None]
        waits = [wait for _, wait in times if wait is not None]
        if len(runs) == len(waits) == len(times):
            used = Used(len(times), sum(runs) / PPM, sum(waits) / PPM)
            found[domain.name, domain.domain_id] = used
    return found
