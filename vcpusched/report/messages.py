"""Renders what happened for the journal, the status line and the state file.

Rule: pure. Names of guests are made printable here, so that none can forge a line or an escape
sequence; journal fields keep them as they are, since journald frames them.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Cycle, Unclear
from vcpusched.act.feedback import Proof, Verdict
from vcpusched.act.ledger import RESETS_MAX, Changed
from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Granularity
from vcpusched.plan.explain import settled
from vcpusched.plan.planner import Cause, Move, Plan
from vcpusched.report.plan_text import counted, done_text, only_lets_in
from vcpusched.report.snapshot import host_as_json, plan_as_json
from vcpusched.report.treatments import untold
from vcpusched.text import cpus_text, percent, points, printable, vcpu_text

STATE_VERSION: Final = 1
WAIT_SHOWN_PPM: Final = PPM_PER_POINT // 2
"""What rounds to 0 %: nearly every vCPU waits for that, and a thousand guests make a long file."""

NAMED_MAX: Final = 5
"""How many domains one line names."""

MESSAGE_ID_PIN: Final = "64672ee17c744ff39534af4c63f2e545"
MESSAGE_ID_GIVEN_BACK: Final = "7b2e74bab6544c01bc89a700e4f484f7"
MESSAGE_ID_RESET: Final = "c99117327c204bd7a6f45406f39f9796"
MESSAGE_ID_PLAN: Final = "1b7b454b11c7488faf18e12c14b291a1"
MESSAGE_ID_OUTCOME: Final = "5637ea496c8c4d53ae29535ec6e97677"

CATALOGUE: Final = {
    Cause.BALANCE: MESSAGE_ID_PIN,
    Cause.WORSE_OFF: MESSAGE_ID_PIN,
    Cause.NOT_ALLOWED: MESSAGE_ID_GIVEN_BACK,
    Cause.RESET: MESSAGE_ID_RESET,
    Cause.RESTORED: MESSAGE_ID_GIVEN_BACK,
}
"""By the cause of what we changed: what others changed is no pin, and has no ID."""


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
class Pause:
    """A pause; `until_s` is seconds since the epoch, None without an end."""

    until_s: float | None = None
    problem: str = ""

    @property
    def text(self) -> str:
        """Say until when, as a person reads the clock."""
        if self.until_s is None:
            return 'Paused until "vcpusched resume"'
        moment = datetime.fromtimestamp(self.until_s).astimezone()
        form = "%H:%M:%S" if moment.date() == datetime.now().astimezone().date() else "%F %H:%M:%S"
        return f"Paused until {moment:{form}}"


@dataclass(frozen=True, slots=True)
class Service:
    """What is known about the service as a whole.

    `connected` once the host was read; `trouble` says why it is not, or cannot be read any more;
    `pins_failing` what went wrong with pins in the last plan; `granularity` is what vCPUs are
    pinned to; times are seconds since the epoch, and `pins` are counted since the service began.
    """

    pid: int
    started_at_s: float
    uri: str
    period_s: float
    threshold_ppm: int
    dry_run: bool = False
    paused: Pause | None = None
    connected: bool = False
    trouble: str | None = None
    pins: int = 0
    pins_last_hour: int = 0
    pins_last_day: int = 0
    pins_failing: tuple[str, ...] = ()
    last_pins: tuple[PastPin, ...] = ()
    cycle: Cycle | None = None
    granularity: Granularity = Granularity.CPU

    @property
    def untold(self) -> str:
        """What the host does not tell that `granularity` asks for, and what is done instead."""
        host = self.cycle.host if self.cycle is not None else None
        return untold((cpu.cpu for cpu in host.cpus), self.granularity) if host is not None else ""


def changed_entry(changed: Changed) -> Entry:
    """Tell of one changed affinity."""
    move = changed.move
    if move.cause not in CATALOGUE:
        return _of_others(changed)
    fields, reason = _moved(move), printable(move.reason, 400)
    before, now = cpus_text(move.from_cpus), cpus_text(move.to_cpus)
    whose = vcpu_text(move.vcpu.vcpu, move.domain)
    if move.cause is Cause.RESET:
        text = f"The kernel let {whose} off {now}, where it was pinned, and onto {before}:"
        text += " pinned again"
    elif CATALOGUE[move.cause] == MESSAGE_ID_GIVEN_BACK:
        text = f"Gave {whose} its affinity back: from {before} to {now}"
        text += f", since {reason}" if reason else ""
        text += missing_text(changed.missing)
    else:
        text = f"Pinned {_subject(move)} from {before} to {now}: {reason}"
        fields |= {"LOAD": _decimal(move.load_ppm), "REASON": move.reason}
        fields["CYCLE"] = changed.number
    return _entry(text, CATALOGUE[move.cause], **fields)


def missing_text(cpus: CpuSet) -> str:
    """Say which pCPUs of an original affinity could not be given back."""
    return f"; {cpus_text(cpus)} of it cannot be used now, so it stays recorded" if cpus else ""


def _of_others(changed: Changed) -> Entry:
    move, priority = changed.move, Priority.INFO
    whose, now = vcpu_text(move.vcpu.vcpu, move.domain), cpus_text(move.to_cpus)
    if move.cause is Cause.PINNED:
        text = f"Another hand pinned {whose} to {now}: it stays there, until released or restarted"
    elif move.cause is Cause.POOLED:
        priority = Priority.INFO if changed.was_ours else Priority.DEBUG
        text = f"Another hand lets {whose} use {now}: that is obeyed"
    else:
        priority, books = Priority.WARNING, f"{cpus_text(move.from_cpus)}, where it was pinned"
        often = f"for the {RESETS_MAX + 1}th time within an hour"
        text = f"{whose} was let off {books}, {often}: it is left alone now"
    return _entry(text, priority=priority, DOMAIN=move.domain, DOMAIN_UUID=move.vcpu.uuid)


def plan_entry(cycle: Cycle, pin_to: Granularity) -> Entry | None:
    """Tell of an executed plan; None when the cycle changed nothing."""
    plan, host = cycle.plan, cycle.host
    if plan is None or host is None or not cycle.pinned:
        return None
    return _entry(
        done_text(plan, host, pin_to, cycle.pinned),
        MESSAGE_ID_PLAN,
        GAP_BEFORE=_decimal(plan.gap_before_ppm),
        GAP_AFTER=_decimal(plan.gap_after_ppm),
        MOVES=len(cycle.pinned),
        CYCLE=cycle.number,
    )


def outcome_entry(proof: Proof) -> Entry:
    """Tell what came of an executed plan."""
    before, planned = points(proof.gap_before_ppm), points(proof.gap_promised_ppm)
    gap = f"the gap is {points(proof.gap_ppm)} (before {before}, as planned {planned})"
    the_plan = f"plan of cycle {proof.number}"
    before, now = percent(proof.wait_before_ppm), percent(proof.wait_ppm)
    waited = f"{counted(proof.waiting, 'vCPU')} that waited for {before} of the time, now for {now}"
    text = {
        Verdict.NO_WAIT: f"After the {the_plan} {gap}; nobody had to wait before",
        Verdict.HELPED: f"The {the_plan} helped: {waited}; {gap}",
        Verdict.NO_HELP: f"The {the_plan} did not help: {waited}, "
        f"{percent(proof.wait_promised_ppm)} as planned; {gap}. What it moved is left alone for "
        "a while",
        Verdict.UNCLEAR: f"Whether the {the_plan} helped cannot be told, since guests want "
        f"something else by now; {gap}",
    }[proof.verdict]
    return _entry(
        text,
        MESSAGE_ID_OUTCOME,
        VERDICT=proof.verdict.value,
        GAP_BEFORE=_decimal(proof.gap_before_ppm),
        GAP_AFTER=_decimal(proof.gap_promised_ppm),
        GAP_MEASURED=_decimal(proof.gap_ppm),
        WAITING=proof.waiting,
        WAIT_BEFORE=_decimal(proof.wait_before_ppm),
        WAIT_AFTER=_decimal(proof.wait_promised_ppm),
        WAIT_MEASURED=_decimal(proof.wait_ppm),
        CYCLE=proof.number,
    )


def failure_entry(failure: Failure) -> Entry:
    """Tell of a pin that could not be made."""
    move, why = failure.move, printable(failure.why, 300)
    if move.cause is Cause.RESTORED:
        whose = vcpu_text(move.vcpu.vcpu, move.domain)
        text = f"Could not give {whose} its affinity back: {why}"
        return _entry(text, priority=Priority.WARNING, **_moved(move))
    return _entry(
        f"Could not pin {_subject(move)} to {cpus_text(move.to_cpus)}: {why}",
        priority=Priority.DEBUG if failure.expected else Priority.WARNING,
        DOMAIN=move.domain,
        DOMAIN_UUID=move.vcpu.uuid,
    )


def unread_entry(domain: str, why: str) -> Entry:
    """Tell of a running domain that could not be read."""
    text = f"Could not read domain {printable(domain)}, which is left out: {printable(why, 300)}"
    return _entry(text, priority=Priority.WARNING, DOMAIN=domain)


def by_libvirt_entry(domains: Sequence[str], why: str) -> Entry:
    """Tell of running domains whose vCPU threads cannot be read."""
    named = ", ".join(printable(name) for name in domains[:NAMED_MAX])
    more = f" and {len(domains) - NAMED_MAX} more" if len(domains) > NAMED_MAX else ""
    text = f"Reading the vCPUs of {named}{more} through libvirt, because {why}"
    result = "their wait is unknown, and each cycle costs more"
    return _entry(f"{text}: {result}", priority=Priority.WARNING)


def unclear_entry(unclear: Unclear) -> Entry:
    """Tell of a domain whose wish is not understood."""
    text = f"Domain {printable(unclear.name)} is held, since {unclear.why}"
    return _entry(text, priority=Priority.WARNING, DOMAIN=unclear.name, DOMAIN_UUID=unclear.uuid)


def untold_entry(untold: str) -> Entry:
    """Tell of a level of the machine that is asked for and not told."""
    return Entry(Priority.WARNING, untold)


def status_line(service: Service) -> str:
    """Give the one line that `systemctl status` shows."""
    cycle, prefix = service.cycle, "Dry run. " if service.dry_run else ""
    if service.paused is not None:
        prefix += f"{service.paused.text}. "
    why = f": {printable(service.trouble, 300)}" if service.trouble else ""
    if not service.connected:
        return f"{prefix}Waiting for libvirt at {printable(service.uri, 200)}{why}"
    if why:
        return f"{prefix}Cannot read the host{why}"
    if cycle is not None and cycle.domains == 0:
        what = "No guests"
    elif cycle is None or cycle.plan is None:
        what = "Measuring the first period"
    elif cycle.host is not None and not cycle.host.cpus:
        what = "No pCPU to balance: check the setting cpus"
    else:
        verdict = _verdict(cycle, cycle.plan, service.granularity)
        what = f"{verdict}, gap {points(gap_now_ppm(cycle, cycle.plan))}"
        what += f" (threshold {service.threshold_ppm / PPM_PER_POINT:g})"
    pins = f"{counted(service.pins, 'pin')} so far"
    if service.pins_failing:
        pins += f", {len(service.pins_failing)} failing"
    if cycle is not None and cycle.withheld:
        pins += f", {cycle.withheld} not allowed any more, which stay as long as nothing is changed"
    return f"{prefix}{what}; {pins}; {counted(cycle.domains if cycle else 0, 'domain')}"


def _verdict(cycle: Cycle, plan: Plan, pin_to: Granularity) -> str:
    if plan.balanced:
        return "Balanced"
    if plan.moves and not only_lets_in(plan):
        if cycle.pinned:
            return "Rebalanced"
        if cycle.confirmed < cycle.confirm:
            return f"Unbalanced in {cycle.confirmed} of {cycle.confirm} periods"
        return "Unbalanced"
    why = settled(cycle.host, plan, pin_to) if cycle.host is not None else "no pin is worth it"
    return f"Unbalanced but settled ({why})"


def gap_now_ppm(cycle: Cycle, plan: Plan) -> int:
    """Give the gap after a cycle: as planned, if all of its plan was done, else as it was found."""
    done = cycle.executed and not cycle.dry_run and len(cycle.pinned) == len(plan.moves)
    return plan.gap_after_ppm if done else plan.gap_before_ppm


def state_as_json(service: Service, at_s: float) -> dict[str, Any]:
    """Give the state file, version 1."""
    cycle = service.cycle or Cycle(0, 0)
    plan = cycle.plan
    return {
        "version": STATE_VERSION,
        "pid": service.pid,
        "started_at": service.started_at_s,
        "at": at_s,
        "uri": service.uri,
        "period": service.period_s,
        "balance_threshold": service.threshold_ppm / PPM_PER_POINT,
        "dry_run": service.dry_run,
        "paused": service.paused is not None,
        "paused_until": service.paused.until_s if service.paused is not None else None,
        "connected": service.connected,
        "trouble": service.trouble,
        "pin_to": service.granularity.value,
        "status": status_line(service),
        "untold": service.untold,
        "pins": service.pins,
        "pins_last_hour": service.pins_last_hour,
        "pins_last_day": service.pins_last_day,
        "pins_failing": list(service.pins_failing),
        "last_pins": [
            {
                "at": pin.at_s,
                "domain": pin.move.domain,
                "uuid": pin.move.vcpu.uuid,
                "vcpu": pin.move.vcpu.vcpu,
                "from": str(pin.move.from_cpus),
                "to": str(pin.move.to_cpus),
                "reason": pin.move.reason,
            }
            for pin in service.last_pins
        ],
        "cycle": cycle.number,
        "domains": cycle.domains,
        "gap": gap_now_ppm(cycle, plan) / PPM if plan else None,
        "waits": [
            {"uuid": vcpu.uuid, "id": vcpu.domain_id, "vcpu": vcpu.vcpu, "wait": wait_ppm / PPM}
            for vcpu, wait_ppm in cycle.waits.items()
            if wait_ppm >= WAIT_SHOWN_PPM
        ],
        "left_alone": [{"cpus": str(cpus), "why": why} for why, cpus in cycle.left_alone.items()],
        "loads": {str(cpu): ppm / PPM for cpu, ppm in plan.loads_before_ppm} if plan else {},
        "plan": plan_as_json(plan) if plan else None,
        "snapshot": host_as_json(cycle.host) if cycle.host else None,
    }


def _entry(
    message: str, message_id: str = "", priority: Priority = Priority.INFO, **fields: object
) -> Entry:
    """Give an entry with fields of ours, which get our prefix."""
    told = {f"VCPUSCHED_{key}": str(value) for key, value in fields.items()}
    return Entry(priority, message, {"MESSAGE_ID": message_id, **told} if message_id else told)


def _moved(move: Move) -> dict[str, Any]:
    """Return the fields of a changed affinity."""
    whose = {"DOMAIN": move.domain, "DOMAIN_UUID": move.vcpu.uuid, "VCPU": move.vcpu.vcpu}
    return {**whose, "FROM": move.from_cpus, "TO": move.to_cpus}


def _subject(move: Move) -> str:
    return f"{vcpu_text(move.vcpu.vcpu, move.domain)} ({percent(move.load_ppm)})"


def _decimal(load_ppm: int) -> str:
    return f"{load_ppm / PPM:.2f}"
