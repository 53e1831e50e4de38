"""Restores affinities and ends holds, and says of each domain what came of it.

Rule: done through a `Reconciler`, by the service or by a verb under its lock; prints nothing.
"""

from collections.abc import Callable, Sequence

from vcpusched.act.actuator import Event, ignore, never
from vcpusched.act.ledger import Changed
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.hypervisor import (
    ConnectionLostError,
    HypervisorError,
    NotRecordedError,
    PermissionDeniedError,
    VanishedError,
)
from vcpusched.model import DomainUuid
from vcpusched.report.messages import changed_entry, failure_entry
from vcpusched.service import exits
from vcpusched.service.control import Answer, Request, Verb
from vcpusched.text import printable, vcpu_text


def carry_out(
    reconciler: Reconciler,
    request: Request,
    *,
    beside_service: bool,
    cancelled: Callable[[], bool] = never,
    on_event: Callable[[Event], None] = ignore,
) -> Answer:
    """Do what is asked for. Raises ConnectionLostError.

    `beside_service`: what is restored would be pinned again, and is held where that is asked for.
    """
    try:
        sample = reconciler.sample()
        reconciler.settle(on_event, rests=True)  # what is not asked for is left as it is
        names = {domain.uuid: domain.name for domain in sample.domains}
        names |= {uuid: unread.name for uuid, unread in sample.unread.items()}
        by_name = {name: uuid for uuid, name in names.items()}
        asked = dict.fromkeys(by_name.get(name, DomainUuid(name)) for name in request.domains)
        unknown = [printable(name) for name in asked if name not in names]
        if unknown:
            problems = [f"{name}: no such guest is running" for name in unknown]
            return Answer(exits.USAGE, problems=tuple(problems))
        wanted = list(asked) or None
        if request.verb is Verb.RELEASE:
            return _released(reconciler, wanted, names)
        hold = request.verb is Verb.RESTORE and (beside_service or wanted is not None)
        events = reconciler.restore(wanted, hold=hold, cancelled=cancelled, on_event=on_event)
    except ConnectionLostError:
        raise
    except NotRecordedError as error:
        return Answer(exits.FAILURE, problems=(str(error),))
    except PermissionDeniedError as error:
        return Answer(exits.NOT_PERMITTED, problems=(str(error),))
    except HypervisorError as error:
        return Answer(exits.FAILURE, problems=(f"the host cannot be read: {error}",))
    left = [
        f"{printable(name)}: our mark in its metadata could not be removed; try again"
        for name in reconciler.still_marked(wanted)
    ]
    known = reconciler.book.ledger.entries
    unheld = [names[uuid] for uuid in wanted or names if hold and uuid not in known]
    left += [
        f"{printable(name)}: it cannot be read yet, so it is not held; try again" for name in unheld
    ]
    if wanted is None and (elsewhere := reconciler.book.elsewhere()):
        left.append(elsewhere)
    held = wanted and [uuid for uuid in wanted if uuid in known]
    all_held = ""
    if hold and wanted is None:
        all_held = "All guests that could be read" if unheld else "All guests"
    return _restored(events, held or (), names, left, all_held)


def _released(
    reconciler: Reconciler, wanted: list[DomainUuid] | None, names: dict[DomainUuid, str]
) -> Answer:
    released = reconciler.release(wanted)
    lines = [f"{printable(name)}: released" for name in released]
    others = [names[uuid] for uuid in wanted or () if names[uuid] not in released]
    lines += [f"{printable(name)}: was not held" for name in others]
    return Answer(exits.OK, tuple(lines or ["No vCPU is held."]))


def _restored(
    events: Sequence[Event],
    wanted: Sequence[DomainUuid],
    names: dict[DomainUuid, str],
    left: Sequence[str],
    all_held: str,
) -> Answer:
    lines, problems = [], []
    for event in events:
        move = event.move
        if isinstance(event, Changed):
            lines.append(changed_entry(event).message)
            if event.missing:
                name = printable(move.domain)
                problems.append(f"{name}: what is missing stays recorded for the next restore")
        elif event.kind is VanishedError:
            lines.append(f"{vcpu_text(move.vcpu.vcpu, move.domain)} has ended meanwhile")
        else:
            problems.append(failure_entry(event).message)
    problems += left
    moved = {event.move.vcpu.uuid for event in events}
    for uuid in wanted:
        name = printable(names[uuid])
        if uuid not in moved:
            lines.append(f"{name} is not pinned by vcpusched")
        lines.append(f'{name} is held until "vcpusched release {name}"')
    if not lines and not problems:
        lines.append("No vCPU is pinned by vcpusched.")
    if all_held:
        lines.append(f'{all_held} are held until "vcpusched release", because the service runs.')
    status = exits.FAILURE if problems else exits.OK
    return Answer(status, tuple(lines), tuple(dict.fromkeys(problems)))
