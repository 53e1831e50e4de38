"""The verbs.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from vcpusched import __version__, exits

if TYPE_CHECKING:
    from vcpusched.config import Effective, Settings
    from vcpusched.model import Host
    from vcpusched.snapshot import SavedState
    from vcpusched.workload import Workload

ONE_SHOT_PATIENCE_S: Final = 10.0
"""How long a one-shot verb waits for libvirt beyond the period that it samples."""


class _Refusal(Exception):  # noqa: N818  it is an answer, not a fault
    """Ends the program with a line on stderr and an exit status."""

    def __init__(self, status: int, *lines: str) -> None:
        super().__init__(*lines)
        self.status = status
        self.lines = lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit status."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or pipe of another encoding shows "?" where it lacks a letter.
        sys.stdout.reconfigure(errors="replace")
    if options.verb is not _run:
        # Ctrl-C ends at once, also while a call blocks, when Python would not deliver it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        status: int = options.verb(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except _Refusal as refusal:
        for line in refusal.lines:
            print(f"vcpusched: {line}", file=sys.stderr)
        return refusal.status
    except BrokenPipeError:
        if options.verb is _run:
            raise
        # Whoever read our output has seen enough; nothing may be flushed into the pipe at exit.
        _drop_output()
        return exits.OK
    except OSError as error:
        if options.verb is _run:
            raise
        _drop_output()
        print(f"vcpusched: standard output: cannot be written: {error.strerror}", file=sys.stderr)
        return exits.FAILURE
    return status


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vcpusched",
        description="Keeps the virtual CPUs of this host well placed, with few pin changes.",
        epilog="Manual: vcpusched(8), vcpusched.toml(5).",
    )
    parser.add_argument("--version", action="version", version=f"vcpusched {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=summary, description=summary)
        added.set_defaults(verb=run)
        return added

    run = verb("run", _run, "Balance this host until told to stop (the service).")
    run.add_argument(
        "period",
        nargs="?",
        type=float,
        metavar="PERIOD",
        help="seconds between two looks, 0.5 to 3600 (default: the setting's 3)",
    )
    run.add_argument("--once", action="store_true", help="make one decision, then end")
    _add_switch(run, "--dry-run", "decide and report, but change no pin")
    _add_switch(run, "--exit-when-idle", "end at the first look that finds no guest")
    plan = verb("plan", _plan, "Show what would be done now, and why. Changes nothing.")
    plan.add_argument(
        "--from", dest="snapshot", metavar="SNAPSHOT", help="plan for a saved snapshot (-: stdin)"
    )
    plan.add_argument(
        "--explain", metavar="DOMAIN", help="say why each of its vCPUs is moved, or is not"
    )
    plan.add_argument("--json", action="store_true", help="give the plan as JSON")
    snapshot = verb("snapshot", _snapshot, "Save the host as the planner sees it, as JSON.")
    snapshot.add_argument("-o", dest="output", metavar="FILE", help="write here, not to stdout")
    status = verb("status", _status, "Show how the running service is doing.")
    status.add_argument("--json", action="store_true", help="give the state as JSON")
    check = verb("check-config", _check_config, "Show the settings in force and their sources.")
    for reader in (run, plan, snapshot, check):
        reader.add_argument("--uri", help="the libvirt of this host")
    simulate = verb(
        "simulate", _simulate, "Try the settings on a simulated host. Needs no libvirt."
    )
    _add_simulate_options(simulate)
    for reader in (run, plan, snapshot, check, simulate):
        reader.add_argument("--config", type=Path, metavar="FILE", help="read only this file")
    return parser


def _add_simulate_options(parser: argparse.ArgumentParser) -> None:
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("workload", nargs="?", type=Path, metavar="WORKLOAD", help="a TOML file")
    load.add_argument("--trace", type=Path, metavar="FILE", help="guests chosen from a trace")
    load.add_argument("--generate", action="store_true", help="guests made up as clouds have them")
    parser.add_argument(
        "--cpus", type=_whole(1, 1024), metavar="M", help="with M pCPUs (default: 8)"
    )
    parser.add_argument(
        "--vcpus", type=_whole(1, 16_384), metavar="N", help="and N vCPUs (default: 32)"
    )
    parser.add_argument(
        "--mean", type=_whole(1, 1000), metavar="PERCENT", help="scaled to this mean load of a pCPU"
    )
    parser.add_argument(
        "--periods", type=_whole(1, 30_000), metavar="P", help="for P periods (default: 288)"
    )
    parser.add_argument(
        "--seed", type=_whole(0, 1 << 53), metavar="S", help="another S, another run (default: 0)"
    )
    parser.add_argument(
        "--place",
        choices=("random", "round-robin", "one", "floating"),
        default="random",
        help="where vCPUs start that the workload does not pin (default: random)",
    )
    parser.add_argument("--json", action="store_true", help="give the result as JSON")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not allowed: must be a whole number from {low} to {high}"
            )
        return value

    return parse


def _add_switch(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    # None when it is not given, so that it does not outrank the file with a "no".
    parser.add_argument(name, action="store_const", const=True, default=None, help=text)


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    flags = {
        key: getattr(options, key, None) for key in ("period", "uri", "dry_run", "exit_when_idle")
    }
    return {key: value for key, value in flags.items() if value is not None}


def _settings(options: argparse.Namespace) -> "Effective":
    from vcpusched import config

    try:
        return config.load(options.config, _flags(options))
    except config.ConfigError as error:
        status = exits.USAGE if error.on_command_line else exits.BAD_CONFIGURATION
        raise _Refusal(status, *error.lines) from None


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched import config, daemon, journal, rundir
    from vcpusched.libvirt_host import FirstSeen, LibvirtHost

    first_seen: FirstSeen = {}

    def open_session(uri: str, read_only: bool) -> LibvirtHost:  # noqa: FBT001  as Orders has it
        return LibvirtHost.open(uri, read_only=read_only, first_seen=first_seen)

    orders = daemon.Orders(
        settings=settings,
        reload=lambda: config.load(options.config, _flags(options)).settings,
        open_session=open_session,
        directory=rundir.locate(),
        once=options.once,
    )
    try:
        return daemon.serve(orders, journal.choose_log())
    except rundir.AlreadyRunningError as error:
        raise _Refusal(exits.FAILURE, str(error)) from None
    except rundir.RunDirectoryError as error:
        hint = "run it as root, or name a directory of your own in RUNTIME_DIRECTORY"
        raise _Refusal(exits.NOT_PERMITTED, f"{error}; {hint}") from None


def _plan(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched import explain, planner, snapshot

    if options.snapshot is not None:
        host, source = _saved(options.snapshot)
    else:
        host, source = _present(settings)
    policy = settings.policy()
    plan = planner.plan(host, policy)
    explanations = explain.explained(host, plan, options.explain or "")
    if options.explain is not None and not explanations:
        text = f"--explain: {json.dumps(options.explain)}: no vCPU of such a domain has a load here"
        raise _Refusal(exits.USAGE, text)
    if options.json:
        answer = snapshot.plan_as_json(plan) | {"treatment": explain.treatments_as_json(host)}
        if explanations:
            answer["explanation"] = explain.explanations_as_json(explanations)
        print(f"vcpusched: {source}", file=sys.stderr)
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return exits.OK
    from vcpusched import display

    if explanations:
        display.show(display.draw_explanations(options.explain, explanations, source))
        return exits.OK
    display.show(display.draw_plan(host, plan, policy.balance_threshold_ppm, source))
    return exits.OK


def _snapshot(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched import snapshot

    host, source = _present(settings)
    text = json.dumps(snapshot.host_as_json(host), indent=1, ensure_ascii=False)
    if options.output is None:
        print(text)
    else:
        try:
            # Written, not replaced: it may be a device or a link, and is not ours.
            Path(options.output).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            message = f"{options.output}: cannot be written: {error.strerror}"
            raise _Refusal(exits.FAILURE, message) from None
    print(f"vcpusched: {source}", file=sys.stderr)
    return exits.OK


def _status(options: argparse.Namespace) -> int:
    from vcpusched import display, explain, rundir, snapshot
    from vcpusched.model import PPM

    try:
        text = _live_state()
        state = snapshot.parse_state(text) if text is not None else None
        host = snapshot.saved_host(state) if state is not None else None
    except (rundir.RunDirectoryError, snapshot.SnapshotError) as error:
        raise _Refusal(exits.DEGRADED, f"the daemon's state cannot be read: {error}") from None
    if state is None or text is None:
        if options.json:
            print(json.dumps({"version": 1, "health": "not running"}))
        else:
            print(f"vcpusched is not running on this host ({rundir.locate()}).")
        return exits.NOT_RUNNING
    healthy = state.is_healthy(time.time() - state.at)
    health = "healthy" if healthy else "degraded"
    if options.json:
        treatment = explain.treatments_as_json(host) if host is not None else []
        answer = {"health": health, **json.loads(text), "treatment": treatment}
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        loads_ppm = {int(cpu): round(load * PPM) for cpu, load in state.loads.items()}
        headline = f"vcpusched is {health}: {state.status}"
        display.show(display.draw_status(headline, _status_lines(state), host, loads_ppm))
    return exits.OK if healthy else exits.DEGRADED


def _status_lines(state: "SavedState") -> list[str]:
    from vcpusched.text import printable

    age_s = max(0.0, time.time() - state.at)
    process = f"process {state.pid} since {_clock(state.started_at, '%Y-%m-%d %H:%M:%S')}"
    where = f"every {state.period:g} s at {printable(state.uri, 200)}"
    lines = [f"{process}; this is from {age_s:.0f} s ago; {where}"]
    if age_s > state.age_max_s:
        lines.append("the process lives but has said nothing since then: it hangs, or was stopped")
    lines += [f"failing: {printable(failing, 300)}" for failing in state.pins_failing]
    lines += [
        f"{_clock(pin.at, '%H:%M:%S')} pinned vCPU {pin.vcpu} of {printable(pin.domain)}:"
        f" {printable(pin.from_cpus)} → {printable(pin.to_cpus)}"
        for pin in state.last_pins
    ]
    return lines


def _clock(at_s: float, form: str) -> str:
    return time.strftime(form, time.localtime(at_s))


def _check_config(options: argparse.Namespace) -> int:
    effective = _settings(options)
    from vcpusched import display

    values = effective.settings.model_dump()
    rows = [(key, json.dumps(value), effective.origin[key]) for key, value in values.items()]
    display.show(display.draw_settings(rows))
    return exits.OK


def _simulate(options: argparse.Namespace) -> int:
    settings = _settings(options).settings
    from vcpusched import display, outcome
    from vcpusched.scheduler import Scheduler
    from vcpusched.simulator import Place, simulate

    # Rather than end at once: a progress bar has hidden the cursor.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        workload = _workload(options, settings.period)
        period_ns, place = round(settings.period * 1e9), Place(options.place)
        with display.progress("Simulating", 2 * workload.periods) as advance:
            runs = [
                simulate(
                    workload,
                    scheduler,
                    settings.rules(),
                    place=place,
                    period_ns=period_ns,
                    on_period=lambda _result, _cycle: advance(),
                )
                for scheduler in (Scheduler(), None)
            ]
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    if options.json:
        about = outcome.about_as_json(workload, place.value, period_ns)
        results = {"with": outcome.as_json(runs[0]), "without": outcome.as_json(runs[1])}
        print(json.dumps(about | results, ensure_ascii=False))
    else:
        display.show(display.draw_simulation(workload, *runs))
    return exits.OK


def _workload(options: argparse.Namespace, period_s: float) -> "Workload":
    from vcpusched import generator, workload, workload_files
    from vcpusched.model import PPM

    try:
        if options.workload is not None:
            for name in ("cpus", "vcpus", "mean"):
                if getattr(options, name) is not None:
                    line = f"--{name} goes with --trace and --generate; a workload file has its own"
                    raise _Refusal(exits.USAGE, line)
            return workload_files.read_toml(
                options.workload, periods=options.periods, seed=options.seed
            )
        cpus, vcpus, seed = options.cpus or 8, options.vcpus or 32, options.seed or 0
        if options.trace is not None:
            made = workload_files.read_trace(
                options.trace,
                cpu_count=cpus,
                vcpu_count=vcpus,
                periods=options.periods,
                seed=seed,
            )
        else:
            made = generator.generate(
                cpu_count=cpus,
                vcpu_count=vcpus,
                periods=options.periods or 288,
                seed=seed,
                period_s=period_s,
            )
        return made if options.mean is None else workload.scaled(made, options.mean * PPM // 100)
    except workload.WorkloadError as error:
        raise _Refusal(exits.BAD_INPUT, str(error)) from None


def _saved(name: str) -> tuple["Host", str]:
    from vcpusched import snapshot

    where = "standard input" if name == "-" else name
    try:
        if name == "-" and sys.stdin is None:
            raise _Refusal(exits.BAD_INPUT, "standard input: is closed")
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        return snapshot.parse(text), f"As saved in {where}"
    except OSError as error:
        raise _Refusal(exits.BAD_INPUT, f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _Refusal(exits.BAD_INPUT, f"{where}: not a snapshot: not UTF-8 text") from None
    except snapshot.SnapshotError as error:
        raise _Refusal(exits.BAD_INPUT, f"{where}: {error}") from None


def _present(settings: "Settings") -> tuple["Host", str]:
    """Give the host as the running daemon sees it, or sample one period."""
    from vcpusched import rundir, snapshot
    from vcpusched.text import printable

    try:
        text = _live_state()
        state = snapshot.parse_state(text) if text is not None else None
        host = snapshot.saved_host(state) if state is not None else None
    except (rundir.RunDirectoryError, snapshot.SnapshotError):
        state = host = None  # `status` tells what is wrong with it; here it is only a shortcut
    if state is not None and host is not None and state.uri == settings.uri:
        age_s = max(0.0, time.time() - state.at)
        if age_s <= state.age_max_s:
            return host, f"As the running service (process {state.pid}) saw it {age_s:.0f} s ago"
    host = _sampled(settings)
    uri = printable(settings.uri, 200)
    return host, f"Sampled {uri} for {settings.period:g} s, as no service runs whose state to use"


def _sampled(settings: "Settings") -> "Host":
    from vcpusched.hypervisor import HypervisorError, PermissionDeniedError
    from vcpusched.libvirt_host import LibvirtHost
    from vcpusched.load import Smoothing, observe
    from vcpusched.model import ALL_CPUS, NO_CPUS
    from vcpusched.worker import call_within

    def sample_twice() -> "Host":
        session = LibvirtHost.open(settings.uri, read_only=True)
        # Which pCPUs are crowded is not known before the first sample.
        asked = ALL_CPUS if settings.measure == "demand" else NO_CPUS
        before = session.sample(asked)
        time.sleep(settings.period)
        smoothing = Smoothing(measure=settings.rules().smoothing.measure)
        after = session.sample(asked)
        return observe(before, after, smoothing=smoothing, rules=settings.house()).host

    if sys.stderr.isatty():
        print(f"vcpusched: sampling for {settings.period:g} s …", file=sys.stderr)
    try:
        host: Host = call_within(settings.period + ONE_SHOT_PATIENCE_S, sample_twice)
    except TimeoutError:
        _end_at_once(exits.UNAVAILABLE, f"libvirt at {settings.uri} does not answer")
    except PermissionDeniedError as error:
        raise _Refusal(exits.NOT_PERMITTED, f"libvirt at {settings.uri}: {error}") from None
    except HypervisorError as error:
        raise _Refusal(exits.UNAVAILABLE, f"libvirt at {settings.uri}: {error}") from None
    return host


def _end_at_once(status: int, line: str) -> NoReturn:
    """End without waiting for a thread that is stuck in a call."""
    print(f"vcpusched: {line}", file=sys.stderr, flush=True)
    os._exit(status)


def _live_state() -> str | None:
    """Give what the running daemon last wrote; None where none runs. Raises RunDirectoryError."""
    from vcpusched import rundir

    directory = rundir.locate()
    return rundir.read_state(directory) if rundir.is_locked(directory) else None


if __name__ == "__main__":
    sys.exit(main())
