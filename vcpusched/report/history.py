"""Tells what was moved, when and why, and whether it helped, from entries of the journal.

Rule: pure; puts together what `report` once said in fields, and believes none of it: names are not
made printable here but where they are shown, and what cannot be read is left out.

Terms: an event is a plan that was carried out; pins made without one (the way back of a vCPU that
was worse off pinned, or a plan whose end was not told); pins made again that the kernel had undone;
or original affinities given back.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vcpusched.act.proof import PATIENCE_NS, Verdict
from vcpusched.model import PPM, PPM_PER_POINT
from vcpusched.report.messages import (
    MESSAGE_ID_GIVEN_BACK,
    MESSAGE_ID_OUTCOME,
    MESSAGE_ID_PIN,
    MESSAGE_ID_PLAN,
    MESSAGE_ID_RESET,
)
from vcpusched.text import percent, printable, vcpu_text

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
    RESET = "reset"
    GIVEN_BACK = "given_back"


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

    def number(self, key: str) -> int | None:
        """Give a field of ours that is a whole number; None where it is none."""
        return _whole(self.text(key))


@dataclass(frozen=True, slots=True)
class Moved:
    """A vCPU whose affinity was changed; only of pins the load and the reason are told."""

    at_s: float
    domain: str
    uuid: str
    vcpu: int
    from_cpus: str
    to_cpus: str
    load_ppm: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a plan; waits are means of the `waiting` vCPUs that had to wait before it."""

    at_s: float
    verdict: str
    gap_ppm: int | None
    waiting: int
    wait_before_ppm: int | None
    wait_planned_ppm: int | None
    wait_ppm: int | None


@dataclass(frozen=True, slots=True)
class Event:
    """Moves that belong together; `others` more are of domains that were not asked for."""

    kind: Kind
    at_s: float
    cycle: int | None
    moves: tuple[Moved, ...]
    others: int = 0
    gap_before_ppm: int | None = None
    gap_planned_ppm: int | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What happened from `since_s` to `until_s`, the oldest first; seconds since the epoch."""

    since_s: float
    until_s: float
    events: tuple[Event, ...]


@dataclass(slots=True)
class _Draft:
    kind: Kind
    at_s: float
    cycle: int | None
    moves: list[Moved] = field(default_factory=list)
    plan: Told | None = None
    outcome: Outcome | None = None


def history(
    entries: Iterable[Told], since_s: float, until_s: float, *, domain: str = "", own_uid: int = 0
) -> History:
    """Put entries together, which are in the order they were written in.

    `domain` is a name or UUID: only what concerns it is told. `own_uid` is that of who asks, whose
    entries are believed beside the system's.
    """
    drafts: dict[tuple[str, str, int], _Draft] = {}
    every: list[_Draft] = []
    for told in entries:
        if not _is_trusted(told, own_uid):
            continue
        process = told.fields.get("_BOOT_ID", ""), told.fields.get("_PID", "")
        kind = told.fields.get("MESSAGE_ID", "")
        if kind in _JOINED:
            _join(every, told, _JOINED[kind])
            continue
        cycle = told.number("CYCLE")
        if cycle is None:
            continue
        key = (*process, cycle)
        draft = drafts.get(key)
        if kind == MESSAGE_ID_PIN and (moved := _moved(told)) is not None:
            if draft is None:
                draft = drafts[key] = _Draft(Kind.PINS, told.at_s, cycle)
                every.append(draft)
            draft.moves.append(moved)
        elif kind == MESSAGE_ID_PLAN and draft is not None:
            draft.kind, draft.plan = Kind.PLAN, told
        elif kind == MESSAGE_ID_OUTCOME and draft is not None:
            draft.outcome = _outcome(told)
    events = (_event(draft, domain) for draft in every if draft.at_s >= since_s)
    return History(since_s, until_s, tuple(event for event in events if event.moves))


def _whole(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= _NUMBER_LENGTH_MAX
    return int(text) if is_number else None


def _is_trusted(told: Told, own_uid: int) -> bool:
    """Tell whether the system wrote an entry, or who asks; `_UID` is journald's own word."""
    uid = _whole(told.fields.get("_UID", ""))
    return uid is not None and (uid <= SYSTEM_UID_MAX or uid == own_uid)


def _moved(told: Told) -> Moved | None:
    vcpu = told.number("VCPU")
    if vcpu is None:
        return None
    return Moved(
        at_s=told.at_s,
        domain=told.text("DOMAIN"),
        uuid=told.text("DOMAIN_UUID"),
        vcpu=vcpu,
        from_cpus=told.text("FROM"),
        to_cpus=told.text("TO"),
        load_ppm=told.ppm("LOAD"),
        reason=told.text("REASON"),
    )


def _join(every: list[_Draft], told: Told, kind: Kind) -> None:
    """Add to what was done of the kind just before, or begin anew."""
    moved = _moved(told)
    if moved is None:
        return
    last = every[-1] if every else None
    if last is None or last.kind is not kind or told.at_s - last.moves[-1].at_s > _APART_S:
        last = _Draft(kind, told.at_s, None)
        every.append(last)
    last.moves.append(moved)


def _outcome(told: Told) -> Outcome:
    return Outcome(
        at_s=told.at_s,
        verdict=told.text("VERDICT"),
        gap_ppm=told.ppm("GAP_MEASURED"),
        waiting=told.number("WAITING") or 0,
        wait_before_ppm=told.ppm("WAIT_BEFORE"),
        wait_planned_ppm=told.ppm("WAIT_AFTER"),
        wait_ppm=told.ppm("WAIT_MEASURED"),
    )


def _event(draft: _Draft, domain: str) -> Event:
    moves = tuple(
        moved for moved in draft.moves if not domain or domain in {moved.domain, moved.uuid}
    )
    return Event(
        kind=draft.kind,
        at_s=draft.at_s,
        cycle=draft.cycle,
        moves=moves,
        others=len(draft.moves) - len(moves),
        gap_before_ppm=draft.plan.ppm("GAP_BEFORE") if draft.plan is not None else None,
        gap_planned_ppm=draft.plan.ppm("GAP_AFTER") if draft.plan is not None else None,
        outcome=draft.outcome,
    )


# What people and programs read.


def summary(past: History) -> str:
    """Tell in one sentence what happened."""
    if not past.events:
        return "Nothing was moved"

    def moves(*kinds: Kind) -> int:
        return sum(len(event.moves) for event in past.events if event.kind in kinds)

    plans = [event for event in past.events if event.kind is Kind.PLAN]
    pins = moves(Kind.PLAN, Kind.PINS)
    parts = [f"{_count(pins, 'pin')} in {_count(len(plans), 'plan')}"]
    verdicts = [event.outcome.verdict for event in plans if event.outcome is not None]
    for verdict, word in _WORDS.items():
        if count := verdicts.count(verdict):
            parts.append(f"{count} {word}")
    if again := moves(Kind.RESET):
        parts.append(f"{again} made again after the kernel")
    if given := moves(Kind.GIVEN_BACK):
        parts.append(f"{_count(given, 'affinity', 'affinities')} given back")
    return ", ".join(parts)


def headline(event: Event) -> str:
    """Say what an event was, without what came of it."""
    count = len(event.moves)
    beside = f" beside {event.others} of others" if event.others else ""
    if event.kind is Kind.GIVEN_BACK:
        return f"{_count(count, 'original affinity', 'original affinities')} given back{beside}"
    if event.kind is Kind.RESET:
        return f"{_count(count, 'pin')} made again{beside}, which the kernel had undone"
    return f"{_count(count, 'pin')}{beside}" + (
        f" by the plan of cycle {event.cycle}" if event.kind is Kind.PLAN else " without a plan"
    )


def figures(event: Event) -> list[tuple[str, str, str, str]]:
    """Give gap and wait before, as planned, and as measured; what nobody measured is a dash."""
    if event.kind is not Kind.PLAN:
        return []
    came = event.outcome
    rows = [
        (
            "gap",
            _points(event.gap_before_ppm),
            _points(event.gap_planned_ppm),
            _points(came.gap_ppm if came is not None else None),
        )
    ]
    if came is not None and came.waiting:
        rows.append(
            (
                "wait",
                _percent(came.wait_before_ppm),
                _percent(came.wait_planned_ppm),
                _percent(came.wait_ppm),
            )
        )
    return rows


def came_of_it(event: Event, now_s: float) -> str:
    """Say in words whether a plan helped; nothing where none was carried out."""
    if event.kind is not Kind.PLAN:
        return ""
    if event.outcome is None:
        if now_s - event.at_s < PENDING_S:
            return "not known yet"
        return "never measured, since the service ended or lost libvirt"
    word = _WORDS.get(event.outcome.verdict, printable(event.outcome.verdict))
    if event.outcome.waiting:
        return f"{word}: {_count(event.outcome.waiting, 'vCPU')} had to wait before"
    return word


def sentence(moved: Moved) -> str:
    """Tell of one move, with names that can do no harm."""
    load = "" if moved.load_ppm is None else f" ({percent(moved.load_ppm)})"
    places = f"{printable(moved.from_cpus)} → {printable(moved.to_cpus)}"
    reason = f": {printable(moved.reason, 400)}" if moved.reason else ""
    return f"{vcpu_text(moved.vcpu, moved.domain)}{load} {places}{reason}"


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
                "gap_before": _pcpus(event.gap_before_ppm),
                "gap_planned": _pcpus(event.gap_planned_ppm),
                "outcome": None if event.outcome is None else _outcome_as_json(event.outcome),
                "moves": [_move_as_json(moved) for moved in event.moves],
                "others": event.others,
            }
            for event in past.events
        ],
    }


def _outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "at": outcome.at_s,
        "verdict": outcome.verdict,
        "gap": _pcpus(outcome.gap_ppm),
        "waiting": outcome.waiting,
        "wait_before": _pcpus(outcome.wait_before_ppm),
        "wait_planned": _pcpus(outcome.wait_planned_ppm),
        "wait": _pcpus(outcome.wait_ppm),
    }


def _move_as_json(moved: Moved) -> dict[str, Any]:
    return {
        "at": moved.at_s,
        "domain": moved.domain,
        "uuid": moved.uuid,
        "vcpu": moved.vcpu,
        "from": moved.from_cpus,
        "to": moved.to_cpus,
        "load": _pcpus(moved.load_ppm),
        "reason": moved.reason,
    }


_WORDS: Final = {
    Verdict.HELPED.value: "helped",
    Verdict.NO_HELP.value: "did not help",
    Verdict.NO_WAIT.value: "moved nobody who had to wait",
    Verdict.UNCLEAR.value: "cannot be told apart from what guests did",
}


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _pcpus(load_ppm: int | None) -> float | None:
    return None if load_ppm is None else load_ppm / PPM


def _points(load_ppm: int | None) -> str:
    return "-" if load_ppm is None else f"{load_ppm / PPM_PER_POINT:.0f} points"


def _percent(share_ppm: int | None) -> str:
    return "-" if share_ppm is None else percent(share_ppm)
