"""Many guests that come and go, under the scheduler and its ledger."""

import random
from pathlib import Path

import pytest

from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Scheduler
from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.model import PPM_PER_POINT, CpuSet
from vcpusched.service.run_directory import LEDGER, LedgerFile
from vcpusched.settings import Settings
from vcpusched.simulate.simulator import SimulatedHost
from vcpusched.simulate.workload import Guest, Workload

GUESTS, PERIODS = 500, 600
"""Half an hour."""


@pytest.mark.full
def test_many_guests_come_and_go(tmp_path: Path) -> None:
    """Each of half a minute to two minutes, bound to a pCPU by chance; 20 run at a time.

    Nobody is pinned twice within the cooldown, the ledger has nobody who ended, and what still
    runs in the end gets its affinity back.
    """
    chance = random.Random(5)
    guests = []
    for number in range(GUESTS):
        start = number * PERIODS // GUESTS
        life = min(chance.randint(8, 40), PERIODS - start)
        load = chance.choice([5, 20, 40]) * PPM_PER_POINT
        first = CpuSet.of([chance.randrange(8)])
        guests.append(Guest(f"g{number}", ((load,) * life,), start=start, pin=first))
    host = SimulatedHost(Workload("", 8, PERIODS, tuple(guests)))
    book = Book(LedgerFile(tmp_path))
    keeper, scheduler = Reconciler(host, book), Scheduler()
    rules = Settings.model_validate({}).rules()
    failures = 0
    for period in range(PERIODS):
        host.pass_period()
        cycle = scheduler.cycle(keeper, rules)
        failures += len(cycle.failures)
        if period == PERIODS - 1:
            break
        host.period += 1
    running = {domain.name for domain in keeper.sample().domains}
    assert failures == 0
    assert 5 < len(running) < 60
    assert {entry.name for entry in book.ledger.entries.values()} == running
    last: dict[str, int] = {}
    for pin in host.pins:
        assert pin.period - last.get(pin.domain, -100) >= 20, pin
        last[pin.domain] = pin.period
    assert len(last) > 100
    assert (tmp_path / LEDGER).stat().st_size < 10_000
    pinned = len(list(book.ledger.pins()))
    given = keeper.restore()
    assert len(given) == pinned > 0
    assert not any(isinstance(one, Failure) for one in given)
    began = {guest.name: guest.pin for guest in guests}
    for domain in keeper.sample().domains:
        assert domain.vcpus[0].affinity == began[domain.name]
