"""The verbs that ask what would be done: `plan` and its answers, and `snapshot`.

Rule: changes nothing on the host; errors become one line and an exit status.
"""

import argparse
import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vcpusched.cli import sources
from vcpusched.model import NO_CPUS, PPM, PPM_PER_POINT, Granularity, Host
from vcpusched.plan import explain, planner
from vcpusched.plan.fairness import Judge
from vcpusched.report import display, snapshot, treatments
from vcpusched.report.plan_text import plan_text, sets_of
from vcpusched.service import exits
from vcpusched.settings import Settings
from vcpusched.text import as_json, printable

COMPARED: Final = (Granularity.CPU, Granularity.CACHE, Granularity.NODE)

READ_WITH: Final = ("cpus", "include_domains", "exclude_domains", "period", "uri")
"""The settings by which a host is read: to try them it must be read anew."""

PLANNED_BY: Final = (
    *("balance_threshold", "min_gain", "max_moves", "pin_to", "floating", "fair_shares"),
    *READ_WITH,
)
"""The settings that a plan depends on (`Settings.policy`): to try another shows nothing."""


def plan(options: argparse.Namespace, settings: Settings) -> int:
    """Show what would be done, and return the exit status. Raises Refusal."""
    host, where = _host(options, settings)
    policy = settings.policy()
    if options.compare:
        return _compare(host, policy, where, is_json=options.json)
    found = planner.plan(host, policy)
    if options.commands:
        print(f"# {where}", *_commands(host, found, settings), sep="\n")
        return exits.OK
    unreported = treatments.unreported((cpu.cpu for cpu in host.cpus), policy.pin_to)
    explanations = explain.explained(host, found, policy, options.explain or "")
    if options.explain is not None and not explanations:
        text = "no guest of this name or UUID has a vCPU whose load is known"
        raise exits.Refusal(exits.USAGE, f"--explain: {json.dumps(options.explain)}: {text}")
    if options.json:
        answer = snapshot.plan_as_json(found) | {"treatment": treatments.treatments_as_json(host)}
        if unreported:
            answer["untold"] = unreported
        if explanations:
            answer["explanation"] = [dataclasses.asdict(one) for one in explanations]
        exits.say(where)
        print(as_json(answer, indent=2))
        return exits.OK
    where = f"{where}\n{unreported}" if unreported else where
    if explanations:
        display.show(display.draw_explanations(options.explain, explanations, where))
    else:
        display.show(display.draw_plan(host, found, policy, where))
    return exits.OK


def _host(options: argparse.Namespace, settings: Settings) -> tuple[Host, str]:
    """Return the host to plan for, and where it is from.

    Raises Refusal, also for what does not go together.
    """
    if options.commands and options.json:
        raise exits.Refusal(exits.USAGE, "--commands: goes without --json")
    keys = [text.partition("=")[0] for text in options.set]
    for key in keys:
        if key not in PLANNED_BY:
            line = f"--set {key}: no plan depends on it, but on {', '.join(PLANNED_BY)}"
            raise exits.Refusal(exits.USAGE, line)
    anew = [key for key in READ_WITH if key in keys]
    if options.snapshot is None:
        return sources.present(settings, anew=bool(anew))
    if anew:
        line = f"--set {anew[0]}: goes without --from: a saved host is as it was read then"
        raise exits.Refusal(exits.USAGE, line)
    return sources.saved(options.snapshot)


def save(options: argparse.Namespace, settings: Settings) -> int:
    """Save the host, and return the exit status. Raises Refusal."""
    host, where = sources.present(settings)
    host = snapshot.anonymized(host) if options.anonymize else host
    text = as_json(snapshot.host_as_json(host), indent=1)
    if options.output is None:
        print(text)
    else:
        try:
            # Written, not replaced: it may be a device or a link, and is not ours.
            Path(options.output).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            message = f"{options.output}: cannot be written: {error.strerror}"
            raise exits.Refusal(exits.FAILURE, message) from None
    exits.say(where)
    return exits.OK


def _compare(host: Host, policy: planner.Policy, where: str, *, is_json: bool) -> int:
    """Show the plans for single pCPUs, caches and nodes side by side."""
    rows = []
    for pin_to in COMPARED:
        found = planner.plan(host, dataclasses.replace(policy, pin_to=pin_to))
        to = {move.vcpu: move.to_cpus for move in found.moves}
        vcpus = (dataclasses.replace(vcpu, cpus=to.get(vcpu.id, vcpu.cpus)) for vcpu in host.vcpus)
        row = {
            "pin_to": pin_to.value,
            "sets": len(sets_of(host, pin_to)),
            "pins": len(found.moves),
            "gap_before": found.gap_before_ppm / PPM,
            "gap_after": found.gap_after_ppm / PPM,
            "worst_served_before": _worst_served(host),
            "worst_served_after": _worst_served(dataclasses.replace(host, vcpus=tuple(vcpus))),
        }
        rows.append(row)
    if is_json:
        exits.say(where)
        print(as_json(rows, indent=2))
    else:
        display.show(display.draw_comparison(rows, where))
    return exits.OK


def _worst_served(host: Host) -> float:
    """Return which share of its demand that vCPU gets which gets the least, by loads; to the ppm.

    Demands below a point do not count.
    """
    judge = Judge(host, NO_CPUS)
    got_ppm = judge.divide(judge.places, host.online.bits)
    pairs = zip(got_ppm, judge.demands_ppm, strict=True)
    shares_ppm = (got * PPM // wants for got, wants in pairs if wants >= PPM_PER_POINT)
    return min(shares_ppm, default=PPM) / PPM


def _commands(host: Host, found: planner.Plan, settings: Settings) -> Iterator[str]:
    """Yield the commands that carry a plan out, in its order, after a comment with the verdict."""
    text = plan_text(found, host, settings.policy())
    yield f"# Plan: {text}" if found.moves else f"# {text}"
    for move in found.moves:
        name = move.domain if move.domain.isprintable() else move.vcpu.uuid
        whose = f"--domain {shlex.quote(printable(name, 200))} --vcpu {move.vcpu.vcpu}"
        where = f"--cpulist {move.to_cpus} --live"
        yield f"virsh --connect {shlex.quote(settings.uri)} vcpupin {whose} {where}"
