"""What is found of vCPUs beside the ledger, on values: young ones, new ones, offline pCPUs."""

import dataclasses
from collections.abc import Mapping

import pytest

from vcpusched.act.comparison import RESETS_NS, YOUNG_NS, reconcile
from vcpusched.act.ledger import RESETS_MAX, Ledger
from vcpusched.model import ALL_CPUS, Cpu, CpuSet, DomainUuid, Topology, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Definition, DomainReading, Origin, Sample, VcpuReading

SECOND_NS = 1_000_000_000
UUID = DomainUuid("a")
PIN = frozenset({CpuSet.of([5])})
"""The pin that marks name here."""


def definition(
    stated: str = "", books: str = "", origin: Mapping[int, Origin] | None = None
) -> Definition:
    """Return the definition of a guest of two vCPUs."""
    cpus = CpuSet.parse(stated) if stated else ALL_CPUS
    booked = dict.fromkeys((0, 1), CpuSet.parse(books)) if books else {}
    return Definition(dict.fromkeys((0, 1), cpus), booked=booked, origin=origin or {})


def sample(
    at_s: float,
    *affinities: str,
    runs_s: tuple[float, ...] = (),
    defined: Definition | None = None,
    domain_id: int = 1,
    offline: str = "",
) -> Sample:
    """Return a sample of a host of eight pCPUs with one guest, whose vCPUs run all the time.

    One without an affinity is not there.
    """
    readings = tuple(
        VcpuReading(
            number,
            round((runs_s[number] if runs_s else at_s) * SECOND_NS),
            CpuSet.parse(cpus),
        )
        for number, cpus in enumerate(affinities)
        if cpus
    )
    at_ns = round((at_s + 1) * SECOND_NS)
    domain = DomainReading(UUID, domain_id, "a", at_ns, readings, defined or definition())
    gone = CpuSet.parse(offline)
    online = Topology(tuple(Cpu(cpu) for cpu in range(8) if cpu not in gone))
    return Sample(online, (domain,), offline=gone)


def seen(*samples: Sample, ledger: Ledger | None = None) -> tuple[Ledger, list[Cause]]:
    """Compare samples one after the other; returns the ledger and what was changed by others."""
    ledger, causes = ledger or Ledger(), list[Cause]()
    for one in samples:
        found = reconcile(ledger, one, reconcile(ledger, one).unclear)
        ledger = found.ledger
        causes += [changed.move.cause for changed in found.changes]
    return ledger, causes


def pinned(ledger: Ledger, cpu: int, vcpu: int = 0) -> Ledger:
    """Return the ledger after a pin of ours."""
    to = VcpuId(UUID, 1, vcpu)
    move = Move(to, "a", CpuSet(), CpuSet.of([cpu]), 0, "")
    return ledger.intending(move).made(move)


def of(ledger: Ledger, vcpu: int = 0) -> tuple[str, str, str]:
    """Return what is known of a vCPU: its affinity, its original, and why it is held."""
    record = ledger.record(VcpuId(UUID, 1, vcpu))
    assert record is not None
    return str(record.affinity), str(record.original or ""), str(record.held or "")


@pytest.mark.parametrize("wide_s", [0.0, 0.15, 0.56])
@pytest.mark.parametrize("original", ["0", "0-3"])
def test_a_guest_wakes_with_our_pin(wide_s: float, original: str) -> None:
    """Its thread is wide for a moment, its books and mark are as it was saved: the pin is ours.

    Nothing is reported of another, and the original is that of the mark.
    """
    wakes = definition(books="5", origin={0: Origin(CpuSet.parse(original), PIN)})
    wide = [sample(each / 100, "0-7", "0-7", defined=wakes) for each in range(round(wide_s * 100))]
    ledger, causes = seen(*wide, sample(1, "5", "0-7", defined=wakes))
    assert of(ledger) == ("5", original, "")
    ledger, later = seen(
        *(sample(at_s, "5", "0-7", defined=wakes) for at_s in (2, 11, 12)), ledger=ledger
    )
    assert of(ledger) == ("5", original, "")
    assert causes == later == []


@pytest.mark.parametrize(("kept_free", "original"), [("isolated", "0-3"), ("tickless", "0-7")])
def test_anywhere_is_where_libvirt_puts_what_is_not_bound(kept_free: str, original: str) -> None:
    """It leaves out isolated pCPUs, and not those that are only tickless."""
    wakes = definition(books="5", origin={0: Origin(ALL_CPUS, PIN)})
    host = {kept_free: CpuSet.parse("4-7")}
    first = dataclasses.replace(sample(0, "5", "0-7", defined=wakes), **host)  # type: ignore[arg-type]
    ledger, causes = seen(first)
    assert (of(ledger), causes) == (("5", original, ""), [])


def test_a_guest_starts_with_a_pin_of_its_definition() -> None:
    """Seen before libvirt has applied it: it is nobody's doing, and no hold."""
    starts = definition(stated="3", books="3")
    ledger, causes = seen(
        sample(0, "0-7", "0-7", defined=starts),
        *(sample(at_s, "3", "3", defined=starts) for at_s in (0.5, 5, 20)),
    )
    assert (of(ledger), causes) == (("3", "", ""), [])


def test_another_pins_a_guest_that_is_young_or_not() -> None:
    """In its first seconds it cannot be distinguished from libvirt's doing; later it is held."""
    for at_s, held in ((YOUNG_NS / 1e9 - 1, ""), (YOUNG_NS / 1e9 + 1, "pinned")):
        ledger, causes = seen(
            sample(0, "0-7", "0-7"), sample(at_s - 0.5, "0-7", "0-7"), sample(at_s, "4", "0-7")
        )
        assert of(ledger) == ("4", "", held)
        assert causes == ([Cause.PINNED] if held else [])


def test_nothing_is_mended_while_a_guest_is_young() -> None:
    """A sample says no original and no pin of it: nothing would be right to do about them."""
    wakes = definition(books="5", origin={0: Origin(CpuSet.of([0]), PIN)})
    for at_s, is_known in ((0.0, False), (9.0, False), (11.0, True)):
        first = sample(0, "5", "0-7", defined=wakes)
        now = sample(at_s, "5", "0-7", defined=wakes)
        (domain,) = reconcile(seen(first)[0], now).sample.domains
        assert domain.vcpus[0].ours
        assert (domain.vcpus[0].pin is not None) == is_known


@pytest.mark.parametrize("books", ["5", "3"])
@pytest.mark.parametrize("original", ["0", "0-7"])
def test_a_person_pins_a_guest_that_wakes_with_our_mark(original: str, books: str) -> None:
    """In its first seconds: reported and held once they are over, and nobody's pin of ours.

    Also if libvirt's books are read again in these seconds, as they are once a minute.
    """
    origin = {0: Origin(CpuSet.parse(original), PIN)}
    wakes, again = definition(books="5", origin=origin), definition(books=books, origin=origin)
    ledger, causes = seen(
        sample(0, "0-7", "0-7", defined=wakes),
        sample(1, "5", "0-7", defined=wakes),
        *(sample(at_s, "3", "0-7", defined=again) for at_s in (5, 9)),
    )
    assert causes == []
    ledger, causes = seen(sample(11, "3", "0-7", defined=again), ledger=ledger)
    assert (of(ledger), causes) == (("3", "", "pinned"), [Cause.PINNED])


def old() -> Ledger:
    """Return the ledger of a guest that has run for a while, with a pin of ours on pCPU 2."""
    ledger, _causes = seen(sample(0, "0-7", "0-3"), sample(20, "0-7", "0-3"))
    return pinned(pinned(ledger, 2), 2, vcpu=1)


def test_a_vcpu_is_unplugged_and_plugged_in_again() -> None:
    """To the new thread libvirt applies our pin: it is ours as before, with its original."""
    ledger, causes = seen(
        sample(21, "2", "2"),
        sample(22, "2", ""),
        sample(23, "2", "2", runs_s=(23, 0.1)),
        sample(24, "2", "2", runs_s=(24, 1.1)),
        ledger=old(),
    )
    assert (of(ledger, 1), causes) == (("2", "0-3", ""), [])
    # Its thread may be seen before that.
    booked = definition(books="2")
    ledger, causes = seen(
        sample(23, "2", "0-7", runs_s=(23, 0.1), defined=booked),
        sample(24, "2", "2", runs_s=(24, 1.1)),
        ledger=old(),
    )
    assert (of(ledger, 1), causes) == (("2", "0-3", ""), [])


def test_a_vcpu_is_plugged_in_for_the_first_time() -> None:
    """It is young, beside one that is not."""
    ledger, causes = seen(
        sample(0, "0-7"),
        sample(20, "0-7"),
        sample(30, "0-7", "0-7", runs_s=(30, 0)),
        sample(31, "0-7", "6", runs_s=(31, 1)),
    )
    assert (of(ledger, 1), causes) == (("6", "", ""), [])
    assert not ledger.entries[UUID].records[0].young_ns


def test_a_guest_that_began_anew_under_its_old_id_is_another_run() -> None:
    """All of its counters fell: nothing of ours is in it."""
    ledger, causes = seen(sample(21, "0-7", "0-7", runs_s=(1, 1)), ledger=old())
    assert of(ledger) == ("0-7", "", "")
    assert causes == []
    # Also before its definition can be read, while libvirtd gives ids anew.
    unknown = sample(21, "0-7", "0-7", runs_s=(1, 1), defined=Definition({}))
    assert not reconcile(old(), unknown, unseen={UUID}).ledger.entries


def test_a_guest_with_a_new_id_is_another_run_where_a_counter_fell() -> None:
    """Also of one that was restarted while no service ran, with a thread where our pin was."""
    for run_s, entry in ((30, ("2", "0-7")), (5, ("2", ""))):
        there = sample(30, "2", "2", runs_s=(run_s, 30), domain_id=9)
        found = reconcile(old(), there, unseen={UUID}).ledger
        record = found.record(VcpuId(UUID, 9, 0))
        assert record is not None
        assert (str(record.affinity), str(record.original or "")) == entry


def test_what_is_known_of_a_guest_outlives_a_definition_that_cannot_be_read() -> None:
    """Our pins, and that it bears our mark."""
    ledger = old().marking(UUID, marked=True)
    found = reconcile(ledger, sample(21, "2", "2", defined=Definition({}))).ledger
    assert (of(found), of(found, 1)) == (("2", "0-7", ""), ("2", "0-3", ""))
    assert found.entries[UUID].marked


def test_a_hold_ends_with_its_vcpu() -> None:
    """Unplugged between two samples, and plugged in again: libvirt puts it where it was."""
    booked = definition(books="6")
    ledger, causes = seen(sample(21, "2", "6", defined=booked), ledger=old())
    assert (of(ledger, 1), causes) == (("6", "", "pinned"), [Cause.PINNED])
    ledger, causes = seen(
        sample(22, "2", "6", runs_s=(22, 0.1), defined=booked),
        sample(40, "2", "6", runs_s=(40, 18), defined=booked),
        ledger=ledger,
    )
    assert (of(ledger, 1), causes) == (("6", "", ""), [])


@pytest.mark.parametrize(
    ("stated", "books", "seen_as", "original"),
    [
        ("", "", "0-6", "0-7"),
        ("1-7", "", "1-6", "1-7"),
        ("", "6-7", "6", "6-7"),
        ("", "", "0-3", "0-3"),
        ("0-3", "", "0-3", "0-3"),
    ],
)
def test_an_offline_pcpu_belongs_to_the_original(
    stated: str, books: str, seen_as: str, original: str
) -> None:
    """At the first pin pCPU 7 is offline, and the kernel shows no mask with it."""
    defined = definition(stated, books)
    ledger, _causes = seen(
        *(sample(at_s, seen_as, seen_as, defined=defined, offline="7") for at_s in (0, 20))
    )
    assert of(pinned(ledger, 2))[1] == original


@pytest.mark.parametrize(("stated", "books"), [("", "0-7"), ("", "4-7"), ("4-7", "4-7")])
def test_an_offline_pcpu_belongs_to_what_a_person_sets(stated: str, books: str) -> None:
    """To several pCPUs, one of which is offline just then."""
    before, after = (definition(stated, each) for each in ("5", books))
    ledger, causes = seen(
        *(sample(at_s, "5", "5", defined=before) for at_s in (0, 11)),
        sample(20, books.replace("7", "6"), "5", defined=after, offline="7"),
    )
    assert causes == [Cause.POOLED]
    assert of(pinned(ledger, 6))[1] == books


def test_a_pin_that_is_all_of_the_original_that_is_online_is_ours() -> None:
    """A guest wakes with it: the original is known once the rest of it is back."""
    origin = Origin(CpuSet.parse("5-7"), frozenset({CpuSet.parse("5-6")}))
    wakes = definition("5-7", books="5-6", origin={0: origin})
    ledger, causes = seen(
        *(sample(at_s, "5-6", defined=wakes, offline="7") for at_s in (0, 11)),
        sample(20, "5-6", defined=wakes),
    )
    assert (of(ledger), causes) == (("5-6", "5-7", ""), [])


def test_resets_count_within_an_hour() -> None:
    """Once a month a pin is made again, for ever; four times within an hour are too often."""
    booked, anywhere, pin = definition(books="2"), CpuSet.parse("0-7"), CpuSet.of([2])
    again = Move(VcpuId(UUID, 1, 0), "a", anywhere, pin, 0, "", cause=Cause.RESET)
    for every_s, is_left in ((30 * 24 * 3600, False), (RESETS_NS / 1e9 / 5, True)):
        ledger, at_s = old(), 100_000.0
        causes: list[Cause] = []
        for _ in range(RESETS_MAX + 9):
            at_s += every_s
            found = reconcile(ledger, sample(at_s, "0-7", "2", defined=booked), {UUID})
            ledger = found.ledger
            causes += [changed.move.cause for changed in found.changes]
            if found.sample.domains[0].vcpus[0].undone:
                ledger = ledger.made(again)
            ledger, changed = seen(sample(at_s + 1, "2", "2", defined=booked), ledger=ledger)
            causes += changed
        assert (causes == [Cause.LEFT]) is is_left


def test_a_cpuset_that_narrows_is_nobodys_pin() -> None:
    """The kernel takes the guest off what it may not use any more, and a way back is cut to it."""
    first, _causes = seen(*(sample(second, "0-7", "0-7") for second in (0.0, 11.0)))
    narrowed = dataclasses.replace(definition(books="6"), cpuset=CpuSet.parse("2-5"))
    after = (sample(second, "2-5", "2-5", defined=narrowed) for second in (20.0, 23.0))
    ledger, causes = seen(*after, ledger=pinned(first, 6))
    assert (causes, of(ledger)) == ([], ("6", "0-7", ""))
    to = CpuSet.parse("0-7")
    back = Move(VcpuId(UUID, 1, 0), "a", CpuSet(), to, 0, "", cause=Cause.RESTORED)
    restored = ledger.intending(back).made(back)
    ledger, causes = seen(sample(26.0, "2-5", "2-5", defined=narrowed), ledger=restored)
    assert (causes, of(ledger)) == ([], ("0-7", "", ""))


@pytest.mark.parametrize("ours", [True, False])
def test_a_cpuset_that_cuts_a_set_is_nobodys_pin(*, ours: bool) -> None:
    """What a minute-old definition does not say is asked for when an affinity has shrunk."""
    first, _causes = seen(*(sample(second, "4-7") for second in (0.0, 11.0)))
    if ours:
        move = Move(VcpuId(UUID, 1, 0), "a", CpuSet(), CpuSet.parse("5-7"), 0, "")
        first = first.intending(move).made(move)
    cut = sample(20.0, "5" if ours else "4-5")
    assert reconcile(first, cut).unclear == {UUID}
    read = dataclasses.replace(definition(books="5-7"), cpuset=CpuSet.parse("0-5"))
    cut = sample(20.0, "5" if ours else "4-5", defined=read)
    found = reconcile(first, cut, {UUID})
    assert found.changes == ()
    assert of(found.ledger) == (("5-7", "4-7", "") if ours else ("4-7", "", ""))


def test_a_cpuset_that_widens_is_nobodys_pool() -> None:
    """Nor does it make the original narrower, in the minute in which it is not known of."""
    cut, wider = (
        dataclasses.replace(definition(books="0-7"), cpuset=CpuSet.parse(cpus))
        for cpus in ("2-5", "2-6")
    )
    first, _causes = seen(*(sample(at_s, "2-5", defined=cut) for at_s in (0, 11)))
    assert reconcile(first, sample(20, "2-6", defined=cut)).unclear == {UUID}
    found = reconcile(first, sample(20, "2-6", defined=wider), {UUID})
    assert (found.changes, of(found.ledger)) == ((), ("0-7", "", ""))


def test_a_cpuset_that_leaves_one_pcpu_is_nobodys_pin() -> None:
    """The kernel takes the guest there, off our pin, which is outside."""
    first, _causes = seen(*(sample(at_s, "0-7", "0-7") for at_s in (0, 11)))
    narrowed = dataclasses.replace(definition(books="6"), cpuset=CpuSet.of([3]))
    assert reconcile(pinned(first, 6), sample(20, "3", "0-7")).unclear == {UUID}
    found = reconcile(pinned(first, 6), sample(20, "3", "3", defined=narrowed), {UUID})
    assert (found.changes, of(found.ledger)) == ((), ("6", "0-7", ""))


def test_libvirts_counters_are_no_new_run() -> None:
    """They count in steps: a guest that the kernel hides from now on keeps what is known of it."""
    first, _causes = seen(*(sample(second, "0-7", "0-7") for second in (0.0, 11.0)))
    ledger = pinned(first, 6).holding([UUID])
    ledger, causes = seen(sample(12.0, "6", "0-7", runs_s=(10.985, 10.985)), ledger=ledger)
    assert (causes, of(ledger)) == ([], ("6", "0-7", ""))
    assert ledger.entries[UUID].held
    ledger, _causes = seen(sample(13.0, "6", "0-7", runs_s=(1.0, 1.0)), ledger=ledger)
    assert not ledger.entries[UUID].held
