"""Renders what happened for the journal, the status line and the state file.

Rule: pure. Names of guests are made printable here, so that none can forge a line or an escape
sequence; journal fields keep them as they are, since journald frames them.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vcpusched.model import PPM, PPM_PER_POINT, CpuSet
from vcpusched.planner import Move, Plan, Stop
from vcpusched.scheduler import Cycle, Failure, Unclear
from vcpusched.snapshot import host_as_json, plan_as_json
from vcpusched.text import printable

STATE_VERSION: Final = 1
MESSAGE_ID_PIN: Final = "64672ee17c744ff39534af4c63f2e545"
MESSAGE_ID_PLAN: Final = "1b7b454b11c7488faf18e12c14b291a1"


class Priority(enum.IntEnum):
    """The priorities of syslog(3) that we use."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """One message for the journal; `fields` holds what is beside its text."""

    priority: Priority
    message: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PastPin:
    """A pin that was made; `at_s` is seconds since the epoch."""

    at_s: float
    move: Move


@dataclass(frozen=True, slots=True)
class Service:
    """What is known about the service as a whole.

    `connected` once the host was read; `trouble` says why it is not, or cannot be read any more;
    `pins_failing` what went wrong with pins in the last plan; times are seconds since the epoch.
    """

    pid: int
    started_at_s: float
    uri: str
    period_s: float
    threshold_ppm: int
    dry_run: bool = False
    connected: bool = False
    trouble: str | None = None
    pins: int = 0
    pins_failing: tuple[str, ...] = ()
    last_pins: tuple[PastPin, ...] = ()
    cycle: Cycle | None = None


def pin_entry(number: int, move: Move) -> Entry:
    """Tell of one changed pin."""
    return Entry(
        Priority.INFO,
        f"Pinned {_subject(move)} from {cpus_text(move.from_cpus)} to {cpus_text(move.to_cpus)}: "
        f"{move.reason}",
        {
            "MESSAGE_ID": MESSAGE_ID_PIN,
            "VCPUSCHED_DOMAIN": move.domain,
            "VCPUSCHED_DOMAIN_UUID": move.vcpu.uuid,
            "VCPUSCHED_VCPU": str(move.vcpu.vcpu),
            "VCPUSCHED_FROM": str(move.from_cpus),
            "VCPUSCHED_TO": str(move.to_cpus),
            "VCPUSCHED_LOAD": _decimal(move.load_ppm),
            "VCPUSCHED_REASON": move.reason,
            "VCPUSCHED_CYCLE": str(number),
        },
    )


def plan_entry(cycle: Cycle) -> Entry | None:
    """Tell of an executed plan; None when the cycle changed nothing."""
    plan = cycle.plan
    if plan is None or not cycle.pinned:
        return None
    made, planned = len(cycle.pinned), len(plan.moves)
    count = f"{made} pin{'' if made == 1 else 's'}"
    if made < planned:
        count = f"{made} of {planned} pins planned"
    ends = {
        Stop.BALANCED: "",
        Stop.NO_GAIN: "; closer no move that pays can bring them",
        Stop.MOVE_LIMIT: "; moves_max ended it there",
    }[plan.stop]
    if plan.refused:
        ends = f"; more was planned, but that {plan.refused}"
    return Entry(
        Priority.INFO,
        f"Balanced the host with {count}: the busiest and the freest pCPU were "
        f"{points(plan.gap_before_ppm)} apart, {points(plan.gap_after_ppm)} as planned{ends}",
        {
            "MESSAGE_ID": MESSAGE_ID_PLAN,
            "VCPUSCHED_GAP_BEFORE": _decimal(plan.gap_before_ppm),
            "VCPUSCHED_GAP_AFTER": _decimal(plan.gap_after_ppm),
            "VCPUSCHED_MOVES": str(made),
            "VCPUSCHED_CYCLE": str(cycle.number),
        },
    )


def dry_run_entries(plan: Plan) -> list[Entry]:
    """Tell what would have been done; these entries are no pins and have no pin's message ID."""
    return [
        Entry(
            Priority.INFO,
            f"Dry run: would pin {_subject(move)} from {cpus_text(move.from_cpus)} to "
            f"{cpus_text(move.to_cpus)}: {move.reason}",
        )
        for move in plan.moves
    ]


def failure_entry(failure: Failure) -> Entry:
    """Tell of a pin that could not be made."""
    return Entry(
        Priority.DEBUG if failure.expected else Priority.WARNING,
        f"Could not pin {_subject(failure.move)} to {cpus_text(failure.move.to_cpus)}: "
        f"{printable(failure.why, 300)}",
        {"VCPUSCHED_DOMAIN": failure.move.domain, "VCPUSCHED_DOMAIN_UUID": failure.move.vcpu.uuid},
    )


def unread_entry(domain: str, why: str) -> Entry:
    """Tell of a running domain that could not be read."""
    return Entry(
        Priority.WARNING,
        f"Could not read domain {printable(domain)}, which is left out: {printable(why, 300)}",
        {"VCPUSCHED_DOMAIN": domain},
    )


def unclear_entry(unclear: Unclear) -> Entry:
    """Tell of a domain whose wish is not understood."""
    return Entry(
        Priority.WARNING,
        f"Domain {printable(unclear.name)} is held, since {unclear.why}",
        {"VCPUSCHED_DOMAIN": unclear.name, "VCPUSCHED_DOMAIN_UUID": unclear.uuid},
    )


def status_line(service: Service) -> str:
    """Give the one line that `systemctl status` shows."""
    cycle, prefix = service.cycle, "Dry run. " if service.dry_run else ""
    why = f": {printable(service.trouble, 300)}" if service.trouble else ""
    if not service.connected:
        return f"{prefix}Waiting for libvirt at {printable(service.uri, 200)}{why}"
    if why:
        return f"{prefix}Cannot read the host{why}"
    if cycle is None or cycle.plan is None:
        what = "Measuring the first period"
        if cycle is not None and cycle.domains == 0:
            what = "No guests"
    elif cycle.domains == 0:
        what = "No guests"
    elif cycle.host is not None and not cycle.host.cpus:
        what = "No pCPU is managed: none of those that cpus and exclude_cpus leave is online"
    else:
        what = f"{_verdict(cycle, cycle.plan)}, gap {points(_gap_now(cycle, cycle.plan))}"
        what += f" (threshold {service.threshold_ppm / PPM_PER_POINT:g})"
    pins = f"{service.pins} pin{'' if service.pins == 1 else 's'} so far"
    if service.pins_failing:
        pins += f", {len(service.pins_failing)} failing"
    domains = cycle.domains if cycle else 0
    return f"{prefix}{what}; {pins}; {domains} domain{'' if domains == 1 else 's'}"


def _verdict(cycle: Cycle, plan: Plan) -> str:
    if plan.balanced:
        return "Balanced"
    if cycle.pinned:
        return "Rebalanced"
    if cycle.calm:
        return "Unbalanced, but no vCPU has to wait"
    if plan.moves and cycle.confirmed < cycle.confirm:
        return f"Unbalanced in {cycle.confirmed} of {cycle.confirm} periods"
    if plan.moves:
        return "Unbalanced"
    why = f"what would balance it {plan.refused}" if plan.refused else "no move pays"
    return f"Unbalanced at rest ({why})"


def _gap_now(cycle: Cycle, plan: Plan) -> int:
    done = cycle.executed and not cycle.dry_run and len(cycle.pinned) == len(plan.moves)
    return plan.gap_after_ppm if done else plan.gap_before_ppm


def _loads_now(cycle: Cycle | None) -> tuple[tuple[int, int], ...]:
    return cycle.plan.loads_before_ppm if cycle and cycle.plan else ()


def state_as_json(service: Service, at_s: float) -> dict[str, Any]:
    """Give the state file, version 1."""
    cycle = service.cycle
    return {
        "version": STATE_VERSION,
        "pid": service.pid,
        "started_at": service.started_at_s,
        "at": at_s,
        "uri": service.uri,
        "period": service.period_s,
        "balance_threshold": service.threshold_ppm / PPM_PER_POINT,
        "dry_run": service.dry_run,
        "connected": service.connected,
        "trouble": service.trouble,
        "status": status_line(service),
        "pins": service.pins,
        "pins_failing": list(service.pins_failing),
        "last_pins": [
            {
                "at": pin.at_s,
                "domain": pin.move.domain,
                "vcpu": pin.move.vcpu.vcpu,
                "from": str(pin.move.from_cpus),
                "to": str(pin.move.to_cpus),
                "reason": pin.move.reason,
            }
            for pin in service.last_pins
        ],
        "cycle": cycle.number if cycle else 0,
        "domains": cycle.domains if cycle else 0,
        "loads": {str(cpu): load_ppm / PPM for cpu, load_ppm in _loads_now(cycle)},
        "plan": plan_as_json(cycle.plan) if cycle and cycle.plan else None,
        "snapshot": host_as_json(cycle.host) if cycle and cycle.host else None,
    }


def points(load_ppm: int) -> str:
    """Give a difference of loads in percentage points."""
    text = f"{load_ppm / PPM_PER_POINT:.0f}"
    return f"{text} point{'' if text == '1' else 's'}"


def cpus_text(cpus: CpuSet) -> str:
    """Name pCPUs in a sentence."""
    return f"pCPU {cpus}" if len(cpus) == 1 else f"pCPUs {cpus}"


def _subject(move: Move) -> str:
    return (
        f"vCPU {move.vcpu.vcpu} of {printable(move.domain)} ({move.load_ppm / PPM_PER_POINT:.0f} %)"
    )


def _decimal(load_ppm: int) -> str:
    return f"{load_ppm / PPM:.2f}"
