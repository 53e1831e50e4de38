"""Renders what happened for the journal and the status line.

Rule: pure. Names of guests are made printable here, so that none can forge a line or an escape
sequence; journal fields keep them as they are, since journald frames them.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.feedback import Effect, Verdict
from vcpusched.act.ledger import RESETS_MAX, Changed
from vcpusched.model import PPM, PPM_PER_POINT, Granularity, Host
from vcpusched.plan.planner import Cause, Move, Plan, Policy
from vcpusched.report.plan_text import NO_CPU, only_lets_in, plan_text, settled, unbalanced
from vcpusched.report.treatments import unreported
from vcpusched.settings import Settings
from vcpusched.text import counted, cpus_text, number, percent, points, printable, vcpu_text

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
"""By the cause of what vcpusched changed; what others changed is no pin and has no ID."""


class Priority(enum.IntEnum):
    """The priorities of syslog(3) that we use."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True)
class JournalEntry:
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
    """A pause; `until_s` is seconds since the epoch, None without an end.

    One of a trial ends by itself soon after the trial does.
    """

    until_s: float | None = None
    problem: str = ""
    is_trial: bool = False

    @property
    def text(self) -> str:
        """Return until when, as a person reads the clock."""
        if self.is_trial:
            return 'Paused for a block of "vcpusched trial"'
        if self.until_s is None:
            return 'Paused until "vcpusched resume"'
        moment = datetime.fromtimestamp(self.until_s).astimezone()
        form = "%H:%M:%S" if moment.date() == datetime.now().astimezone().date() else "%F %H:%M:%S"
        return f"Paused until {moment:{form}}"


@dataclass(frozen=True, slots=True)
class Service:
    """What is known about the service as a whole.

    `connected` once the host was read; `trouble` says why it is not, or can no longer be read;
    `pins_failing` what went wrong with pins in the last plan; times are seconds since the epoch,
    and `pins` are counted since the service began.
    """

    pid: int
    started_at_s: float
    settings: Settings
    paused: Pause | None = None
    connected: bool = False
    trouble: str | None = None
    pins: int = 0
    pins_last_hour: int = 0
    pins_last_day: int = 0
    pins_failing: tuple[str, ...] = ()
    last_pins: tuple[PastPin, ...] = ()
    cycle: Cycle | None = None

    @property
    def unreported(self) -> str:
        """Return what `pin_to` asks for and the host does not report, and what replaces it."""
        if self.cycle is None or self.cycle.host is None:
            return ""
        pin_to = Granularity(self.settings.pin_to)
        return unreported((cpu.cpu for cpu in self.cycle.host.cpus), pin_to)


def changed_entry(changed: Changed) -> JournalEntry:
    """Return the entry on one changed affinity."""
    move = changed.move
    if move.cause not in CATALOGUE:
        return _of_others(changed)
    fields, reason = _moved(move), printable(move.reason, 400)
    whose = vcpu_text(move.vcpu.vcpu, move.domain)
    if move.cause is Cause.RESET:
        back = f"{cpus_text(move.to_cpus)} -> {cpus_text(move.from_cpus)}"
        text = f"The kernel reset the affinity of {whose}: {back} (CPU hotplug or cpuset change);"
        text += f" pinned to {cpus_text(move.to_cpus)} again"
    elif CATALOGUE[move.cause] == MESSAGE_ID_GIVEN_BACK:
        text = f"Restored {whose}: {change_text(move)}"
        text += f", because {reason}" if reason else ""
        if changed.missing:
            missing = cpus_text(changed.missing)
            text += f"; {missing} of it cannot be used now, so it stays recorded"
    else:
        doing = f"Plan {changed.number}: pinned" if move.cause is Cause.BALANCE else "Unpinned"
        text = f"{doing} {_subject(move)}, {change_text(move)}: {reason}"
        fields |= {"LOAD": _decimal(move.load_ppm), "REASON": move.reason}
        fields["CYCLE"] = changed.number
    return _entry(text, CATALOGUE[move.cause], **fields)


def change_text(move: Move) -> str:
    """Word from where to where a vCPU moves."""
    return f"{cpus_text(move.from_cpus)} -> {cpus_text(move.to_cpus)}"


def _of_others(changed: Changed) -> JournalEntry:
    move, priority = changed.move, Priority.INFO
    whose, now = vcpu_text(move.vcpu.vcpu, move.domain), cpus_text(move.to_cpus)
    release = f'until "vcpusched release {printable(move.domain)}"'
    if move.cause is Cause.PINNED:
        text = (
            f"Someone else pinned {whose} to {now}: held there {release} or a restart of the guest"
        )
    elif move.cause is Cause.POOLED:
        priority = Priority.INFO if changed.was_ours else Priority.DEBUG
        text = f"Someone else set the affinity of {whose} to {now}: respected from now on"
    else:
        priority = Priority.WARNING
        text = f"The kernel reset the pin of {whose} to {cpus_text(move.from_cpus)}"
        text += f" for the {RESETS_MAX + 1}th time within an hour: not pinned again {release}"
    return _entry(text, priority=priority, DOMAIN=move.domain, DOMAIN_UUID=move.vcpu.uuid)


def plan_entry(cycle: Cycle, policy: Policy) -> JournalEntry | None:
    """Return the entry on an executed plan; None when the cycle changed nothing."""
    plan, host = cycle.plan, cycle.host
    if plan is None or host is None or not cycle.pinned:
        return None
    done = "done" if len(cycle.pinned) == len(plan.moves) else "done in part"
    return _entry(
        f"Plan {cycle.number} {done}: {plan_text(plan, host, policy, cycle.pinned)}",
        MESSAGE_ID_PLAN,
        GAP_BEFORE=_gap(plan.gap_before_ppm),
        GAP_AFTER=_gap(plan.gap_after_ppm),
        MOVES=len(cycle.pinned),
        CYCLE=cycle.number,
    )


def outcome_entry(effect: Effect) -> JournalEntry:
    """Return the entry on what an executed plan brought."""
    before, expected = (number(ppm) for ppm in (effect.gap_before_ppm, effect.gap_expected_ppm))
    gap = f"gap {points(effect.gap_ppm)} ({before} before, ~{expected} expected)"
    wait = "waiting vCPU waits" if effect.waiting == 1 else f"{effect.waiting} waiting vCPUs wait"
    waits = f"the {wait} {percent(effect.wait_ppm)} of the time now"
    before, expected = percent(effect.wait_before_ppm), percent(effect.wait_expected_ppm)
    enough = " enough" if effect.wait_ppm < effect.wait_before_ppm else ""
    text = {
        Verdict.NO_WAIT: f"moved no vCPU that waited; {gap}",
        Verdict.HELPED: f"helped: {waits} ({before} before); {gap}",
        Verdict.NO_HELP: (
            f"did not help{enough}: {waits} ({before} before, ~{expected} expected); {gap}"
        ),
        Verdict.UNCLEAR: f"had an unknown effect; {gap}",
    }[effect.verdict]
    longest: dict[str, Any] = {}
    if effect.longest is not None:
        vcpu, wait_ppm = effect.longest
        longest = {"LONGEST": f"{vcpu.domain}/{vcpu.id.vcpu}", "WAIT_LONGEST": _decimal(wait_ppm)}
    return _entry(
        f"Plan {effect.number} {text}",
        MESSAGE_ID_OUTCOME,
        VERDICT=effect.verdict.value,
        GAP_BEFORE=_gap(effect.gap_before_ppm),
        GAP_AFTER=_gap(effect.gap_expected_ppm),
        GAP_MEASURED=_gap(effect.gap_ppm),
        WAITING=effect.waiting,
        WAIT_BEFORE=_decimal(effect.wait_before_ppm),
        WAIT_AFTER=_decimal(effect.wait_expected_ppm),
        WAIT_MEASURED=_decimal(effect.wait_ppm),
        CYCLE=effect.number,
        **longest,
    )


def failure_entry(failure: Failure) -> JournalEntry:
    """Return the entry on a pin that could not be made."""
    move, why = failure.move, printable(failure.why, 300)
    if move.cause is Cause.RESTORED:
        whose = vcpu_text(move.vcpu.vcpu, move.domain)
        text = f"Could not restore {whose} to {cpus_text(move.to_cpus)}: {why}"
        return _entry(text, priority=Priority.WARNING, **_moved(move))
    return _entry(
        f"Could not pin {_subject(move)} to {cpus_text(move.to_cpus)}: {why}",
        priority=Priority.DEBUG if failure.expected else Priority.WARNING,
        DOMAIN=move.domain,
        DOMAIN_UUID=move.vcpu.uuid,
    )


def unread_entry(domain: str, why: str) -> JournalEntry:
    """Return the entry on a running guest that cannot be read."""
    text = f"Could not read guest {printable(domain)}, skipping it: {printable(why, 300)}"
    return _entry(text, priority=Priority.WARNING, DOMAIN=domain)


def by_libvirt_entry(domains: Sequence[str], why: str) -> JournalEntry:
    """Return the entry on running guests whose vCPU threads cannot be read."""
    named = ", ".join(printable(name) for name in domains[:NAMED_MAX])
    more = f" and {len(domains) - NAMED_MAX} more" if len(domains) > NAMED_MAX else ""
    text = f"Reading the vCPUs of {named}{more} through libvirt, because {why}"
    result = "their wait is unknown, and each cycle costs more"
    return _entry(f"{text}: {result}", priority=Priority.WARNING)


def unclear_entry(domain: str, uuid: str, why: str) -> JournalEntry:
    """Return the entry on a guest whose policy is not understood."""
    text = f"Guest {printable(domain)} is held, because {why}"
    return _entry(text, priority=Priority.WARNING, DOMAIN=domain, DOMAIN_UUID=uuid)


def status_line(service: Service) -> str:
    """Return the one line that `systemctl status` shows."""
    cycle, prefix = service.cycle, "Dry run. " if service.settings.dry_run else ""
    if service.paused is not None:
        prefix += f"{service.paused.text}. "
    why = f": {printable(service.trouble, 300)}" if service.trouble else ""
    if not service.connected:
        return f"{prefix}Waiting for libvirt at {printable(service.settings.uri, 200)}{why}"
    if why:
        return f"{prefix}Cannot read the host{why}"
    if cycle is not None and cycle.domains == 0:
        what = "No guests"
    elif cycle is None or cycle.host is None or cycle.plan is None:
        what = "Measuring the first period"
    elif not cycle.host.cpus:
        what = NO_CPU
    else:
        verdict = _verdict(service, cycle, cycle.host, cycle.plan)
        what = f"{verdict}, gap {points(gap_now_ppm(cycle, cycle.plan))}"
        what += f" (threshold {service.settings.balance_threshold:g})"
    pins = f"{counted(service.pins, 'pin')} so far"
    if service.pins_failing:
        pins += f", {len(service.pins_failing)} failing"
    if cycle is not None and cycle.withheld:
        pins += f", {cycle.withheld} no longer allowed but kept while nothing is changed"
    return f"{prefix}{what}; {pins}; {counted(cycle.domains if cycle else 0, 'guest')}"


def _verdict(service: Service, cycle: Cycle, host: Host, plan: Plan) -> str:
    if plan.balanced:
        return "Balanced"
    if plan.moves and not only_lets_in(plan):
        if cycle.pinned:
            return "Rebalancing"
        if cycle.confirmed < cycle.confirm:
            rests = service.settings.dry_run or service.paused is not None
            doing = "Unbalanced" if rests else "Rebalancing"
            return f"{doing} ({cycle.confirmed} of {cycle.confirm} periods)"
        return "Unbalanced"
    return f"{unbalanced(plan)} ({settled(host, plan, service.settings.policy())})"


def gap_now_ppm(cycle: Cycle, plan: Plan) -> int:
    """Return the gap after a cycle: as planned if all of its plan was done, else as found."""
    done = cycle.executed and not cycle.dry_run and len(cycle.pinned) == len(plan.moves)
    return plan.gap_after_ppm if done else plan.gap_before_ppm


def _entry(
    message: str, message_id: str = "", priority: Priority = Priority.INFO, **fields: object
) -> JournalEntry:
    """Return an entry with fields of ours, which get our prefix."""
    ours = {f"VCPUSCHED_{key}": str(value) for key, value in fields.items()}
    return JournalEntry(
        priority, message, {"MESSAGE_ID": message_id, **ours} if message_id else ours
    )


def _moved(move: Move) -> dict[str, Any]:
    """Return the fields of a changed affinity."""
    whose = {"DOMAIN": move.domain, "DOMAIN_UUID": move.vcpu.uuid, "VCPU": move.vcpu.vcpu}
    return {**whose, "FROM": move.from_cpus, "TO": move.to_cpus}


def _subject(move: Move) -> str:
    return f"{vcpu_text(move.vcpu.vcpu, move.domain)} (~{percent(move.load_ppm)})"


def _decimal(load_ppm: int) -> str:
    return f"{load_ppm / PPM:.2f}"


def _gap(gap_ppm: int) -> str:
    """Word a gap in pCPUs, by as many whole points as the message has (`points`)."""
    return _decimal(gap_ppm - gap_ppm % PPM_PER_POINT)
