"""The commands.

Rule: turns a command line into calls, and errors into one line and an exit status. The rest is
imported where it is used, so that `--help` is quick and `plan --from` needs no libvirt.
"""

import argparse
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vcpusched.cli.parser import make_parser
from vcpusched.service import exits
from vcpusched.text import as_json, shown

if TYPE_CHECKING:
    from vcpusched.settings import Effective
    from vcpusched.simulate.workload import Workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  or `print` would write to stdout
    command: Callable[[argparse.Namespace], int] | None = None
    try:
        options = _parsed(arguments)
        command = _COMMANDS[options.name]
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal or pipe of another encoding shows "?" where it lacks a letter.
            sys.stdout.reconfigure(errors="replace")
        if command is not _run:
            # Ctrl-C ends at once, also while a call blocks, when Python would not deliver it.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        status = command(options)
        _flush()
    except exits.Refusal as refusal:
        for line in refusal.lines:
            exits.say(line)
        return refusal.status
    except ImportError as error:
        exits.say(f"{error.name} cannot be loaded: {error}")
        return exits.FAILURE
    except OSError as error:
        if command is _run:
            raise
        exits.give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return exits.OK  # the reader of the output has seen enough
        exits.say(f"standard output: cannot be written: {error.strerror}")
        return exits.FAILURE
    return status


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return make_parser().parse_args(arguments)
    except SystemExit:
        _flush()  # help may meet a full disk, too
        raise


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    flags = {key: getattr(options, key, None) for key in ("period", "uri", "dry_run")}
    flags = {key: value for key, value in flags.items() if value is not None}
    for text in getattr(options, "set", ()):
        key, sign, flags[key] = text.partition("=")
        if not sign:
            line = f"--set: {shown(text)} is not allowed: must be KEY=VALUE"
            raise exits.Refusal(exits.USAGE, line)
    return flags


def _settings(options: argparse.Namespace) -> "Effective":
    from vcpusched.settings import ConfigError, load

    try:
        return load(options.config, _flags(options))
    except ConfigError as error:
        status = exits.USAGE if error.on_command_line else exits.BAD_CONFIGURATION
        raise exits.Refusal(status, *error.lines) from None


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched.host.definitions import FirstSeen
    from vcpusched.host.libvirt_host import LibvirtHost
    from vcpusched.service import daemon, run_directory, systemd
    from vcpusched.settings import load

    first_seen: FirstSeen = {}

    def open_session(uri: str, read_only: bool) -> LibvirtHost:  # noqa: FBT001  as Orders has it
        return LibvirtHost(uri, read_only=read_only, first_seen=first_seen)

    orders = daemon.Orders(
        settings=settings,
        reload=lambda: load(options.config, _flags(options)).settings,
        open_session=open_session,
        directory=run_directory.locate(),
        once=options.once,
        exit_when_idle=options.exit_when_idle,
    )
    try:
        return daemon.serve(orders, systemd.choose_log())
    except run_directory.AlreadyRunningError as error:
        raise exits.Refusal(exits.FAILURE, str(error)) from None
    except run_directory.RunDirectoryError as error:
        from vcpusched.cli.undo import unusable

        hint = "a directory of your own may be named in RUNTIME_DIRECTORY"
        raise unusable(f"{error}; {hint}", error.__cause__) from None


def _plan(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched.cli import plans

    return plans.plan(options, settings)


def _snapshot(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched.cli import plans

    return plans.save(options, settings)


def _trial(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched.cli import trial

    return trial.run(options, settings)


def _status(options: argparse.Namespace) -> int:
    from vcpusched.cli import sources
    from vcpusched.report import display, treatments
    from vcpusched.service import run_directory

    live = sources.live()
    if live is None:
        if options.json:
            print(json.dumps({"version": 1, "health": "not running"}))
        else:
            print(f"vcpusched is not running on this host ({run_directory.locate()}).")
        return exits.NOT_RUNNING
    text, state, host = live
    now_s = time.time()
    healthy = state.is_healthy(now_s - state.at)
    health = "healthy" if healthy else "degraded"
    if options.json:
        treatment = treatments.treatments_as_json(host) if host is not None else []
        ours = {"health": health, "treatment": treatment}
        print(as_json({"health": health} | json.loads(text) | ours, indent=2))
    else:
        display.show(display.draw_status(state, host, now_s, verbose=options.verbose))
    return exits.OK if healthy else exits.DEGRADED


def _top(_options: argparse.Namespace) -> int:
    from vcpusched.cli import top
    from vcpusched.service import run_directory

    is_terminal = all(file is not None and file.isatty() for file in (sys.stdin, sys.stdout))
    if not is_terminal or os.environ.get("TERM") in {"dumb", "unknown"}:
        raise exits.Refusal(exits.USAGE, 'top: needs a terminal; "vcpusched status" does not')
    directory = run_directory.locate()
    seen = top.look(directory, top.Seen())
    if seen.state is None:
        print(seen.problem)
        return exits.NOT_RUNNING
    top.run(directory, seen, sys.stdin.fileno())
    return exits.OK


def _history(options: argparse.Namespace) -> int:
    from vcpusched.report import display, history
    from vcpusched.service import control, systemd

    now_s = time.time()
    since_s = now_s - control.seconds_of("--since", options.time)
    try:
        entries = systemd.past(history.MESSAGE_IDS, since_s - history.MARGIN_S)
        past = history.history(entries, since_s, now_s, domain=options.domain, own_uid=os.geteuid())
    except systemd.UnreadableError as error:
        raise exits.Refusal(exits.NOT_PERMITTED, str(error)) from None
    except OSError as error:
        line = f"the journal cannot be read: {error.strerror}"
        raise exits.Refusal(exits.FAILURE, line) from None
    if options.json:
        print(as_json(history.as_json(past), indent=2))
    else:
        display.show(display.draw_history(past))
    return exits.OK


def _undo(options: argparse.Namespace) -> int:
    from vcpusched.cli import undo

    # A service that runs needs none: a mistake in them must not keep pins from being undone.
    return undo.carry_out(lambda: _settings(options).settings, options.name, options.domains)


def _pause(options: argparse.Namespace) -> int:
    from vcpusched.cli import undo

    return undo.pause(options.time)


def _resume(_options: argparse.Namespace) -> int:
    from vcpusched.cli import undo

    return undo.resume()


def _check_config(options: argparse.Namespace) -> int:
    effective = _settings(options)
    from vcpusched.host import checks
    from vcpusched.report import display

    values = effective.settings.model_dump()
    rows = [(key, json.dumps(value), effective.origin[key]) for key, value in values.items()]
    found = [f"This host: {line}" for line in checks.find(effective.settings.metrics_file)]
    display.show(display.draw_settings(rows), *[""] * bool(found), *found)
    return exits.OK


def _simulate(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched.act.cycle import Scheduler
    from vcpusched.report import display, simulation, treatments
    from vcpusched.simulate.simulator import Place, simulate

    workload = _workload(options, settings.period)
    if unreported := treatments.unreported(workload.machine().cpus, settings.policy().pin_to):
        exits.say(unreported)
    period_ns, place = round(settings.period * 1e9), Place(options.place)
    with display.progress("Simulating", 2 * workload.periods) as advance:
        runs = [
            simulate(
                workload,
                scheduler,
                settings.rules(),
                place=place,
                period_ns=period_ns,
                on_period=lambda: advance(1),
            )
            for scheduler in (Scheduler(), None)
        ]
    about = workload.about(place.value, period_ns)
    if options.json:
        results = {"with": simulation.as_json(runs[0]), "without": simulation.as_json(runs[1])}
        print(as_json(about | results))
    else:
        display.show(display.draw_simulation(about, *runs))
    return exits.OK


def _workload(options: argparse.Namespace, period_s: float) -> "Workload":
    from vcpusched.model import PPM
    from vcpusched.simulate import traces, workload, workload_files

    try:
        if options.workload is not None:
            for name in ("cpus", "vcpus", "mean"):
                if getattr(options, name) is not None:
                    line = f"--{name} goes with --trace and --generate; a workload file has its own"
                    raise exits.Refusal(exits.USAGE, line)
            return workload_files.read_toml(
                options.workload, periods=options.periods, seed=options.seed
            )
        size = {
            "cpu_count": options.cpus or 8,
            "vcpu_count": options.vcpus or 32,
            "seed": options.seed or 0,
        }
        if options.trace is not None:
            made = workload_files.read_trace(options.trace, periods=options.periods, **size)
        else:
            made = traces.generate(periods=options.periods or 288, period_s=period_s, **size)
        return made if options.mean is None else workload.scaled(made, options.mean * PPM // 100)
    except workload.WorkloadError as error:
        raise exits.Refusal(exits.BAD_INPUT, str(error)) from None


_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "run": _run,
    "plan": _plan,
    "snapshot": _snapshot,
    "status": _status,
    "top": _top,
    "history": _history,
    "trial": _trial,
    "restore": _undo,
    "release": _undo,
    "pause": _pause,
    "resume": _resume,
    "check-config": _check_config,
    "simulate": _simulate,
}


if __name__ == "__main__":
    sys.exit(main())
