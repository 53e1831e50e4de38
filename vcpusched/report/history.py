"""Shows which pins changed, why, and whether it helped, from entries of the journal.

Rule: pure; joins entries by their fields, shows them in their own words, and believes none of it:
what cannot be read is left out.

Terms: an episode is a plan that was carried out; pins made without one (the way back of a vCPU that
was worse off pinned, or a plan whose end is missing); pins made again after a reset by the kernel;
or original affinities restored.
"""

import enum
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vcpusched.act.feedback import VERDICT_NS, Verdict
from vcpusched.plan.planner import Cause
from vcpusched.report.messages import (
    CATALOGUE,
    MESSAGE_ID_GIVEN_BACK,
    MESSAGE_ID_OUTCOME,
    MESSAGE_ID_PIN,
    MESSAGE_ID_PLAN,
    MESSAGE_ID_RESET,
)
from vcpusched.text import counted, printable

VERSION: Final = 1

MESSAGE_IDS: Final = {*CATALOGUE.values(), MESSAGE_ID_PLAN, MESSAGE_ID_OUTCOME}
"""The entries that a history is made of."""

MARGIN_S: Final = 60.0
"""So long before its beginning a history reads, so that the first plan is whole or not in it."""

PENDING_S: Final = VERDICT_NS / 1e9 + 10
"""So long after a plan its outcome may still come."""

SYSTEM_UID_MAX: Final = 999
"""The last of the system's own users. Anyone may write to the journal; journald adds who did."""

MESSAGE_MAX: Final = 1000

_APART_S: Final = 10.0
_NUMBER: Final = re.compile("[0-9]{1,12}")
_DECIMAL: Final = re.compile("[0-9]{1,12}[.][0-9]{1,12}|[0-9]{1,12}")


class Kind(enum.StrEnum):
    """What an episode is."""

    PLAN = "plan"
    PINS = "pins"
    RESET = Cause.RESET.value
    GIVEN_BACK = Cause.RESTORED.value


_JOINED: Final = {MESSAGE_ID_RESET: Kind.RESET, MESSAGE_ID_GIVEN_BACK: Kind.GIVEN_BACK}
"""Entries of no cycle: those of a kind that follow soon on each other are one episode."""


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One entry of the journal: its time, in seconds since the epoch, and its fields."""

    at_s: float
    fields: Mapping[str, str]

    @property
    def message(self) -> str:
        """Return the entry as the journal shows it, fit to be shown."""
        return printable(self.fields.get("MESSAGE", ""), MESSAGE_MAX)

    def text(self, key: str) -> str:
        """Return a field of ours, empty where it is missing."""
        return self.fields.get(f"VCPUSCHED_{key}", "")

    def decimal(self, key: str) -> float | None:
        """Return a field of ours that is a decimal; None where it is none."""
        text = self.text(key)
        return float(text) if _DECIMAL.fullmatch(text) else None

    def number(self, key: str) -> int | None:
        """Return a field of ours that is a whole number; None where it is none."""
        text = self.text(key)
        return int(text) if _NUMBER.fullmatch(text) else None


@dataclass(slots=True)
class Episode:
    """Moves that belong together; `others` more are of guests that were not asked for.

    `plan` is the entry on the plan that they are of, and `outcome` that on what it brought.
    """

    kind: Kind
    at_s: float
    cycle: int | None = None
    moves: list[JournalRecord] = field(default_factory=list)
    others: int = 0
    plan: JournalRecord | None = None
    outcome: JournalRecord | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What happened from `since_s` to `until_s`, the oldest first; seconds since the epoch.

    `domain` is the guest that was asked for, empty for all.
    """

    since_s: float
    until_s: float
    episodes: tuple[Episode, ...]
    domain: str = ""
    left_out: int = 0
    """Entries that others wrote, who may be forging ours."""


def history(
    entries: Iterable[JournalRecord],
    since_s: float,
    until_s: float,
    *,
    domain: str = "",
    own_uid: int = 0,
) -> History:
    """Put entries together, which are in the order they were written in.

    `domain` is a name or UUID: only what concerns it is kept. `own_uid` is that of the caller,
    whose entries are believed beside the system's.
    """
    of_cycle: dict[tuple[str, str, int], Episode] = {}
    every: list[Episode] = []
    left_out = 0
    for record in entries:
        if not _is_trusted(record, own_uid):
            left_out += record.at_s >= since_s
            continue
        kind = record.fields.get("MESSAGE_ID", "")
        is_move, cycle = record.number("VCPU") is not None, record.number("CYCLE")
        if kind in _JOINED:
            if is_move:
                _join(every, record, _JOINED[kind])
            continue
        if cycle is None:
            continue
        key = record.fields.get("_BOOT_ID", ""), record.fields.get("_PID", ""), cycle
        episode = of_cycle.get(key)
        if kind == MESSAGE_ID_PIN and is_move:
            if episode is None:
                episode = of_cycle[key] = Episode(Kind.PINS, record.at_s, cycle)
                every.append(episode)
            episode.moves.append(record)
        elif kind == MESSAGE_ID_PLAN and episode is not None:
            episode.kind, episode.plan = Kind.PLAN, record
        elif kind == MESSAGE_ID_OUTCOME and episode is not None:
            episode.outcome = record
    episodes = (_of_domain(episode, domain) for episode in every if episode.at_s >= since_s)
    moved = tuple(episode for episode in episodes if episode.moves)
    return History(since_s, until_s, moved, domain, left_out)


def _is_trusted(record: JournalRecord, own_uid: int) -> bool:
    """Return whether the system wrote an entry, or the caller; `_UID` is added by journald."""
    uid = record.fields.get("_UID", "")
    return bool(_NUMBER.fullmatch(uid)) and (int(uid) <= SYSTEM_UID_MAX or int(uid) == own_uid)


def _join(every: list[Episode], record: JournalRecord, kind: Kind) -> None:
    """Add to what was done of the kind just before, or begin anew."""
    last = every[-1] if every else None
    if last is None or last.kind is not kind or record.at_s - last.moves[-1].at_s > _APART_S:
        last = Episode(kind, record.at_s)
        every.append(last)
    last.moves.append(record)


def _of_domain(episode: Episode, domain: str) -> Episode:
    if not domain:
        return episode
    moves = [
        one for one in episode.moves if domain in {one.text("DOMAIN"), one.text("DOMAIN_UUID")}
    ]
    return replace(episode, moves=moves, others=len(episode.moves) - len(moves))


# What people and programs read.

_WORDS: Final = {
    Verdict.HELPED.value: "helped",
    Verdict.NO_HELP.value: "did not help enough",
    Verdict.NO_WAIT.value: "moved no vCPU that waited",
    Verdict.UNCLEAR.value: "had an unknown effect",
}


def summary(past: History) -> str:
    """Word in one sentence what happened."""
    left_out = counted(past.left_out, "entry", "entries")
    others = f"; {left_out} by other users left out" if past.left_out else ""
    return f"{_counted(past)}{others}"


def _counted(past: History) -> str:
    if not past.episodes:
        return f"no pin of {printable(past.domain)} changed" if past.domain else "no pin changed"
    moves, plans, verdicts = Counter[Kind](), 0, Counter[str]()
    for episode in past.episodes:
        moves[episode.kind] += len(episode.moves)
        plans += episode.kind is Kind.PLAN
        if episode.kind is Kind.PLAN and episode.outcome is not None:
            verdicts[episode.outcome.text("VERDICT")] += 1
    pins = moves[Kind.PLAN] + moves[Kind.PINS]
    parts = [f"{counted(pins, 'pin')} in {counted(plans, 'plan')}"]
    parts += [f"{verdicts[key]} {word}" for key, word in _WORDS.items() if verdicts[key]]
    if again := moves[Kind.RESET]:
        parts.append(f"{again} made again after a reset by the kernel")
    if restored := moves[Kind.GIVEN_BACK]:
        parts.append(f"{counted(restored, 'affinity', 'affinities')} restored")
    return "; ".join(filter(None, (", ".join(parts), _waits(past), _longest(past))))


def _waits(past: History) -> str:
    """Word for how long vCPUs waited before and after plans; nothing where none waited."""
    waiting = before = after = 0.0
    for episode in past.episodes:
        if episode.outcome is not None and (count := episode.outcome.number("WAITING")):
            waiting += count
            before += count * (episode.outcome.decimal("WAIT_BEFORE") or 0)
            after += count * (episode.outcome.decimal("WAIT_MEASURED") or 0)
    if not waiting:
        return ""
    change = f"{before / waiting:.0%} of the time before, {after / waiting:.0%} after"
    return f"vCPUs that waited: {change}"


def _longest(past: History) -> str:
    """Word who waited longest when the last plan was judged; nothing where that is not known."""
    outcomes = [episode.outcome for episode in past.episodes if episode.kind is Kind.PLAN]
    last = outcomes[-1] if outcomes else None
    if last is None or not (name := last.text("LONGEST")):
        return ""
    share = last.decimal("WAIT_LONGEST") or 0
    return f"{printable(name)} waited longest after the last plan, {share:.0%} of the time"


def headline(episode: Episode) -> str:
    """Word what an episode was."""
    count, beside = len(episode.moves), ""
    if episode.others:
        beside = f" ({episode.others} more of other guests)"
    if episode.plan is not None:
        return episode.plan.message + beside
    return {
        Kind.GIVEN_BACK: f"{counted(count, 'affinity', 'affinities')} restored",
        Kind.RESET: f"{counted(count, 'pin')} made again after a reset by the kernel",
    }.get(episode.kind, f"{counted(count, 'pin')} without a plan") + beside


def outcome(episode: Episode, now_s: float) -> str:
    """Word what a plan brought; nothing where none was carried out."""
    if episode.plan is None:
        return ""
    if episode.outcome is not None:
        return episode.outcome.message
    if now_s - episode.at_s < PENDING_S:
        return "Its effect is not measured yet"
    return "Its effect was never measured: the plan broke off, or the service or libvirt ended"


def as_json(past: History) -> dict[str, Any]:
    """Return a history, version 1: times in seconds since the epoch, loads and gaps in pCPUs."""
    return {
        "version": VERSION,
        "since": past.since_s,
        "until": past.until_s,
        "events": [
            {
                "kind": episode.kind.value,
                "at": episode.at_s,
                "cycle": episode.cycle,
                "gap_before": episode.plan and episode.plan.decimal("GAP_BEFORE"),
                "gap_planned": episode.plan and episode.plan.decimal("GAP_AFTER"),
                "outcome": episode.outcome and _outcome_as_json(episode.outcome),
                "moves": [_move_as_json(moved) for moved in episode.moves],
                "others": episode.others,
            }
            for episode in past.episodes
        ],
    }


def _outcome_as_json(record: JournalRecord) -> dict[str, Any]:
    return {
        "at": record.at_s,
        "verdict": record.text("VERDICT"),
        "gap": record.decimal("GAP_MEASURED"),
        "waiting": record.number("WAITING") or 0,
        "wait_before": record.decimal("WAIT_BEFORE"),
        "wait_planned": record.decimal("WAIT_AFTER"),
        "wait": record.decimal("WAIT_MEASURED"),
        "longest": record.text("LONGEST") or None,
        "wait_longest": record.decimal("WAIT_LONGEST"),
    }


def _move_as_json(record: JournalRecord) -> dict[str, Any]:
    return {
        "at": record.at_s,
        "domain": record.text("DOMAIN"),
        "uuid": record.text("DOMAIN_UUID"),
        "vcpu": record.number("VCPU"),
        "from": record.text("FROM"),
        "to": record.text("TO"),
        "load": record.decimal("LOAD"),
        "reason": record.text("REASON"),
    }
