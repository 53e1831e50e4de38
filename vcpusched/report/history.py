"""Tells what was moved, when and why, and whether it helped, from entries of the journal.

Rule: pure; puts together what `report` once said in fields, and believes none of it: names are not
made printable here but where they are shown, and what cannot be read is left out.

Terms: an event is a plan that was carried out; pins made without one (the way back of a vCPU that
was worse off pinned, or a plan whose end was not told); pins made again that the kernel had undone;
or original affinities given back.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vcpusched.act.feedback import PATIENCE_NS, Verdict
from vcpusched.model import PPM, CpuSet
from vcpusched.plan.planner import Cause
from vcpusched.report.messages import (
    MESSAGE_ID_GIVEN_BACK,
    MESSAGE_ID_OUTCOME,
    MESSAGE_ID_PIN,
    MESSAGE_ID_PLAN,
    MESSAGE_ID_RESET,
)
from vcpusched.report.plan_text import counted, into_sets, lets_in
from vcpusched.text import percent, points, printable, vcpu_text

VERSION: Final = 1

MESSAGE_IDS: Final = (
    MESSAGE_ID_PIN,
    MESSAGE_ID_PLAN,
    MESSAGE_ID_OUTCOME,
    MESSAGE_ID_RESET,
    MESSAGE_ID_GIVEN_BACK,
)
"""The entries that a history is made of."""

MARGIN_S: Final = 60.0
"""So long before its beginning a history reads, so that the first plan is whole or not in it."""

PENDING_S: Final = PATIENCE_NS / 1e9 + 10
"""So long after a plan its outcome may still come."""

SYSTEM_UID_MAX: Final = 999
"""The last of the system's own users. Anybody may write what he likes to the journal, but journald
adds who he is."""

_APART_S: Final = 10.0
_NUMBER_LENGTH_MAX: Final = 12


class Kind(enum.StrEnum):
    """What an event is."""

    PLAN = "plan"
    PINS = "pins"
    RESET = Cause.RESET.value
    GIVEN_BACK = Cause.RESTORED.value


_JOINED: Final = {MESSAGE_ID_RESET: Kind.RESET, MESSAGE_ID_GIVEN_BACK: Kind.GIVEN_BACK}
"""Entries that belong to no cycle: those of a kind that follow soon on each other are one event."""


@dataclass(frozen=True, slots=True)
class Told:
    """One entry of the journal: when it was written, in seconds since the epoch, and its fields."""

    at_s: float
    fields: Mapping[str, str]

    def text(self, key: str) -> str:
        """Give a field of ours, empty where it is missing."""
        return self.fields.get(f"VCPUSCHED_{key}", "")

    def ppm(self, key: str) -> int | None:
        """Give a field of ours that is a decimal, in parts per million; None where it is none."""
        whole, _, part = self.text(key).partition(".")
        are_digits = _whole(whole) is not None and _whole(part or "0") is not None
        return round(float(f"{whole}.{part}") * PPM) if are_digits else None

    def pcpus(self, key: str) -> float | None:
        """Give a field of ours that is a decimal; None where it is none."""
        load_ppm = self.ppm(key)
        return None if load_ppm is None else load_ppm / PPM

    def number(self, key: str) -> int | None:
        """Give a field of ours that is a whole number; None where it is none."""
        return _whole(self.text(key))


@dataclass(slots=True)
class Event:
    """Moves that belong together; `others` more are of domains that were not asked for.

    `plan` is what was told of the plan that they are of, and `outcome` of what came of it.
    """

    kind: Kind
    at_s: float
    cycle: int | None = None
    moves: list[Told] = field(default_factory=list)
    others: int = 0
    plan: Told | None = None
    outcome: Told | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What happened from `since_s` to `until_s`, the oldest first; seconds since the epoch."""

    since_s: float
    until_s: float
    events: tuple[Event, ...]


def history(
    entries: Iterable[Told], since_s: float, until_s: float, *, domain: str = "", own_uid: int = 0
) -> History:
    """Put entries together, which are in the order they were written in.

    `domain` is a name or UUID: only what concerns it is told. `own_uid` is that of who asks, whose
    entries are believed beside the system's.
    """
    of_cycle: dict[tuple[str, str, int], Event] = {}
    every: list[Event] = []
    for told in entries:
        if not _is_trusted(told, own_uid):
            continue
        kind = told.fields.get("MESSAGE_ID", "")
        is_move, cycle = told.number("VCPU") is not None, told.number("CYCLE")
        if kind in _JOINED:
            if is_move:
                _join(every, told, _JOINED[kind])
            continue
        if cycle is None:
            continue
        key = told.fields.get("_BOOT_ID", ""), told.fields.get("_PID", ""), cycle
        event = of_cycle.get(key)
        if kind == MESSAGE_ID_PIN and is_move:
            if event is None:
                event = of_cycle[key] = Event(Kind.PINS, told.at_s, cycle)
                every.append(event)
            event.moves.append(told)
        elif kind == MESSAGE_ID_PLAN and event is not None:
            event.kind, event.plan = Kind.PLAN, told
        elif kind == MESSAGE_ID_OUTCOME and event is not None:
            event.outcome = told
    events = (_of_domain(event, domain) for event in every if event.at_s >= since_s)
    return History(since_s, until_s, tuple(event for event in events if event.moves))


def _whole(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= _NUMBER_LENGTH_MAX
    return int(text) if is_number else None


def _is_trusted(told: Told, own_uid: int) -> bool:
    """Tell whether the system wrote an entry, or who asks; `_UID` is journald's own word."""
    uid = _whole(told.fields.get("_UID", ""))
    return uid is not None and (uid <= SYSTEM_UID_MAX or uid == own_uid)


def _join(every: list[Event], told: Told, kind: Kind) -> None:
    """Add to what was done of the kind just before, or begin anew."""
    last = every[-1] if every else None
    if last is None or last.kind is not kind or told.at_s - last.moves[-1].at_s > _APART_S:
        last = Event(kind, told.at_s)
        every.append(last)
    last.moves.append(told)


def _of_domain(event: Event, domain: str) -> Event:
    if not domain:
        return event
    moves = [one for one in event.moves if domain in {one.text("DOMAIN"), one.text("DOMAIN_UUID")}]
    return replace(event, moves=moves, others=len(event.moves) - len(moves))


# What people and programs read.


def summary(past: History) -> str:
    """Tell in one sentence what happened."""
    if not past.events:
        return "Nothing was moved"
    moves, plans, verdicts = Counter[Kind](), 0, Counter[str]()
    for event in past.events:
        moves[event.kind] += len(event.moves)
        plans += event.kind is Kind.PLAN
        if event.kind is Kind.PLAN and event.outcome is not None:
            verdicts[event.outcome.text("VERDICT")] += 1
    pins = moves[Kind.PLAN] + moves[Kind.PINS]
    parts = [f"{counted(pins, 'pin')} in {counted(plans, 'plan')}"]
    parts += [f"{verdicts[key]} {word}" for key, word in _WORDS.items() if verdicts[key]]
    if again := moves[Kind.RESET]:
        parts.append(f"{again} made again after the kernel")
    if given := moves[Kind.GIVEN_BACK]:
        parts.append(f"{counted(given, 'affinity', 'affinities')} given back")
    return ", ".join(parts)


def headline(event: Event) -> str:
    """Say what an event was, without what came of it."""
    count = len(event.moves)
    beside = f" beside {event.others} of others" if event.others else ""
    if event.kind is Kind.GIVEN_BACK:
        return f"{counted(count, 'original affinity', 'original affinities')} given back{beside}"
    if event.kind is Kind.RESET:
        return f"{counted(count, 'pin')} made again{beside}, which the kernel had undone"
    if event.kind is Kind.PINS:
        return f"{counted(count, 'pin')}{beside} without a plan"
    is_inside = all(_lets_in(moved) for moved in event.moves)
    what = f"Let {into_sets(count)}" if is_inside else counted(count, "pin")
    return f"{what}{beside} by the plan of cycle {event.cycle}"


def _lets_in(moved: Told) -> bool:
    return lets_in(CpuSet.read(moved.text("FROM")), CpuSet.read(moved.text("TO")))


def figures(event: Event) -> list[tuple[str, ...]]:
    """Give gap and wait before, as planned, and as measured; what nobody measured is a dash."""
    plan, came = event.plan, event.outcome
    if plan is None:
        return []
    found_ppm = came.ppm("GAP_MEASURED") if came is not None else None
    gaps_ppm = (plan.ppm("GAP_BEFORE"), plan.ppm("GAP_AFTER"), found_ppm)
    rows = [("gap", *("-" if gap is None else points(gap) for gap in gaps_ppm))]
    if gaps_ppm[0] == gaps_ppm[1] and all(_lets_in(moved) for moved in event.moves):
        rows = []  # it was not to change the gap between sets
    if came is not None and came.number("WAITING"):
        waits_ppm = (came.ppm(f"WAIT_{when}") for when in ("BEFORE", "AFTER", "MEASURED"))
        rows.append(("wait", *("-" if wait is None else percent(wait) for wait in waits_ppm)))
    return rows


def came_of_it(event: Event, now_s: float) -> str:
    """Say in words whether a plan helped; nothing where none was carried out."""
    if event.kind is not Kind.PLAN:
        return ""
    if event.outcome is None:
        if now_s - event.at_s < PENDING_S:
            return "not known yet"
        return "never measured, since the service ended or lost libvirt"
    verdict = event.outcome.text("VERDICT")
    word = _WORDS.get(verdict, printable(verdict))
    if waiting := event.outcome.number("WAITING"):
        return f"{word}: {counted(waiting, 'vCPU')} had to wait before"
    return word


def sentence(moved: Told) -> str:
    """Tell of one move, with names that can do no harm; only of pins load and reason are told."""
    load_ppm, reason = moved.ppm("LOAD"), moved.text("REASON")
    whose = vcpu_text(moved.number("VCPU") or 0, moved.text("DOMAIN"))
    load = "" if load_ppm is None else f" ({percent(load_ppm)})"
    places = f"{printable(moved.text('FROM'))} → {printable(moved.text('TO'))}"
    return f"{whose}{load} {places}" + (f": {printable(reason, 400)}" if reason else "")


def as_json(past: History) -> dict[str, Any]:
    """Give a history, version 1: times in seconds since the epoch, loads and gaps in pCPUs."""
    return {
        "version": VERSION,
        "since": past.since_s,
        "until": past.until_s,
        "events": [
            {
                "kind": event.kind.value,
                "at": event.at_s,
                "cycle": event.cycle,
                "gap_before": event.plan and event.plan.pcpus("GAP_BEFORE"),
                "gap_planned": event.plan and event.plan.pcpus("GAP_AFTER"),
                "outcome": event.outcome and _outcome_as_json(event.outcome),
                "moves": [_move_as_json(moved) for moved in event.moves],
                "others": event.others,
            }
            for event in past.events
        ],
    }


def _outcome_as_json(told: Told) -> dict[str, Any]:
    return {
        "at": told.at_s,
        "verdict": told.text("VERDICT"),
        "gap": told.pcpus("GAP_MEASURED"),
        "waiting": told.number("WAITING") or 0,
        "wait_before": told.pcpus("WAIT_BEFORE"),
        "wait_planned": told.pcpus("WAIT_AFTER"),
        "wait": told.pcpus("WAIT_MEASURED"),
    }


def _move_as_json(told: Told) -> dict[str, Any]:
    return {
        "at": told.at_s,
        "domain": told.text("DOMAIN"),
        "uuid": told.text("DOMAIN_UUID"),
        "vcpu": told.number("VCPU"),
        "from": told.text("FROM"),
        "to": told.text("TO"),
        "load": told.pcpus("LOAD"),
        "reason": told.text("REASON"),
    }


_WORDS: Final = {
    Verdict.HELPED.value: "helped",
    Verdict.NO_HELP.value: "did not help",
    Verdict.NO_WAIT.value: "moved nobody who had to wait",
    Verdict.UNCLEAR.value: "cannot be told apart from what guests did",
}
