"""Prints what a commit decides on drawn hosts, and on hosts where things go wrong, as JSON lines.

Rule: nothing here knows what is right; `unchanged` compares what two commits print.
"""

import contextlib
import dataclasses
import inspect
import itertools
import json
import random
import sys
from collections.abc import Iterator
from typing import Any, Final

from drawn import draw_host, draw_policy, known, of
from faulty_world import Killed, Memory, World

CYCLES: Final = 80
STEPS_MAX: Final = 1500
GENERATED_EVERY: Final = 5
"""Each fifth simulation runs made-up guests on the simulator's machine, the others meet faults."""


def plans(seeds: range) -> Iterator[dict[str, object]]:
    """Plan for one drawn host after the other."""
    plan = of("planner", "plan")
    for seed in seeds:
        found = plan(draw_host(seed), draw_policy(str(seed)))
        yield {
            "plan": seed,
            "stop": found.stop,
            "gap_before": found.gap_before_ppm,
            "gap_after": found.gap_after_ppm,
            "balanced": found.balanced,
            "refused": found.refused,
            "moves": [_as_json(move) for move in found.moves],
        }


def _as_json(move: Any) -> list[object]:  # noqa: ANN401  the side's Move
    return [
        *dataclasses.astuple(move.vcpu),
        str(move.from_cpus),
        str(move.to_cpus),
        move.load_ppm,
        move.reason,
    ]


def draw_rules(seed: int) -> Any:  # noqa: ANN401  the side's Rules
    """Draw how the cycle acts."""
    chance = random.Random(f"rules/{seed}")  # noqa: S311  repeatable
    policy = draw_policy(f"life/{seed}", STEPS_MAX)
    rules = of("cycle", "Rules")
    return known(
        rules,
        policy=policy,
        house=known(
            of("rules", "HouseRules"),
            granularity=getattr(policy, "pin_to", None) or policy.granularity,
            exclude_domains=chance.choice([(), ("guest3",)]),
        ),
        smoothing=known(of("observe", "Smoothing"), half_life_s=chance.choice([0.0, 6.0, 30.0])),
        confirm=chance.choice([1, 2]),
        cooldown_s=chance.choice([0.0, 30.0]),
    )


def life(seed: int) -> list[object]:
    """Run scheduler and ledger on a host where things go wrong; returns what was done, in order."""
    world, rules = World(seed), draw_rules(seed)
    store = Memory(world.happens)
    told, changes = world.told, ("change", "vcpu", "from_cpus", "to_cpus")

    def on_pin(number: int, move: Any) -> None:  # noqa: ANN401  the side's Move
        told.append(["pinned", number, *_as_json(move)])

    def on_change(changed: Any) -> None:  # noqa: ANN401  the side's Changed
        told.append(["changed", *(str(getattr(changed, name, "")) for name in changes)])

    def begin() -> tuple[Any, Any]:
        book = of("ledger_file", "Book")(store)
        with contextlib.suppress(SystemExit):
            return of("keeper", "Reconciler")(world, book), of("cycle", "Scheduler")()
        return of("keeper", "Keeper")(world, book, on_change), of("cycle", "Scheduler")()

    keeper, scheduler = begin()
    heard = inspect.signature(scheduler.cycle).parameters
    hears: dict[str, Any] = {"on_event": lambda event: told.extend(_of_event(event))}
    if "on_pin" in heard:
        hears = {"on_pin": on_pin}
    for _ in range(CYCLES):
        world.meddle()
        world.pass_time()
        try:
            cycle = scheduler.cycle(keeper, rules, **hears)
        except (Killed, of("hypervisor", "HypervisorError")) as error:
            told.append(["ended", type(error).__name__, str(error)])
            keeper, scheduler = begin()
            continue
        told += [["failed", *_as_json(one.move), one.kind, one.why] for one in cycle.failures]
        told += [["proof", proof.verdict] for proof in cycle.proofs]
        freed = cycle.freed if hasattr(cycle, "freed") else cycle.repaired
        told += [["freed", *_as_json(move)] for move in freed if _is_freed(move)]
        if cycle.lost is not None:
            told.append(["lost", cycle.lost])
            keeper, scheduler = begin()
    with contextlib.suppress(Killed, of("hypervisor", "HypervisorError")):
        told += [["restored", str(one)] for one in keeper.restore()]
    return told


def _is_freed(move: Any) -> bool:  # noqa: ANN401  the side's Move
    return getattr(move, "cause", "worse_off") == "worse_off"


def _of_event(event: Any) -> Iterator[list[object]]:  # noqa: ANN401  a later side's
    """Word what happened as sides before them do, which had an event for each cause."""
    if not hasattr(event, "number"):
        return  # failures are told by the cycle
    move = event.move
    if move.cause in {"balance", "worse_off"}:
        yield ["pinned", event.number, *_as_json(move)]
    elif move.cause == "reset":
        yield ["changed", "reset", *map(str, (move.vcpu, move.to_cpus, move.from_cpus))]
    else:
        yield ["changed", *map(str, (move.cause, move.vcpu, move.from_cpus, move.to_cpus))]


def generated(seed: int) -> list[object]:
    """Run the simulator on made-up guests; returns its pins."""
    chance = random.Random(f"generated/{seed}")  # noqa: S311  repeatable
    cpus, vcpus = chance.choice([(4, 10), (6, 16), (8, 20)])
    made_up = {"cpu_count": cpus, "vcpu_count": vcpus, "periods": CYCLES, "seed": seed}
    workload = of("generator", "generate")(**made_up)
    result = of("simulator", "simulate")(workload, of("cycle", "Scheduler")(), draw_rules(seed))
    return [
        *([one.period, one.gap_ppm, one.run_ns, one.wait_ns, one.pins] for one in result.periods),
        *([*map(str, dataclasses.astuple(pin))] for pin in result.pins),
    ]


def lives(seeds: range) -> Iterator[dict[str, object]]:
    """Run one simulation after the other."""
    for seed in seeds:
        done = generated(seed) if seed % GENERATED_EVERY == 0 else life(seed)
        yield {"simulation": seed, "done": done}


def main() -> None:
    """Print a line for each host and each simulation: how many of each the command line says."""
    hosts, simulations = map(int, sys.argv[1:])
    for one in itertools.chain(plans(range(hosts)), lives(range(simulations))):
        print(json.dumps(one, separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
