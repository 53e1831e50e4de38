"""Draws hosts and policies for any commit of the package.

Rule: everything is drawn from seeds alone, so that two commits meet the same (`unchanged`).

Approach: names are looked up in `ROOMS`, newest first. A policy takes the settings that it knows.
"""

import contextlib
import dataclasses
import importlib
import random
from collections.abc import Sequence
from typing import Any, Final

ROOMS: Final = {
    "model": ("model",),
    "hypervisor": ("host.hypervisor", "hypervisor"),
    "rules": ("observe.placement_rules", "house"),
    "observe": ("observe.observe", "load"),
    "planner": ("plan.planner", "planner"),
    "units": ("plan.cpu_groups", "plan.units", "units"),
    "cycle": ("act.cycle", "scheduler"),
    "keeper": ("act.reconciler", "act.keeper", "keeper"),
    "ledger_file": ("act.ledger_file", "ledger_file"),
    "generator": ("simulate.traces", "simulate.generator", "generator"),
    "simulator": ("simulate.simulator", "simulator"),
    "workload": ("simulate.workload", "workload"),
    "settings": ("settings", "config"),
    "messages": ("report.messages", "messages"),
    "announcer": ("service.reporter", "service.announcer"),
    "run_directory": ("service.run_directory",),
    "systemd": ("service.systemd",),
    "daemon": ("service.daemon",),
    "threads": ("host.threads",),
    "cgroups": ("host.cgroups",),
}
"""Where each module is, by what it is for: the newest name first."""

FORMER: Final = {"Reconciler": ("Keeper",)}
"""What classes were called by earlier commits."""

PPM: Final = 1_000_000


def of(room: str, name: str, package: str = "vcpusched") -> Any:  # noqa: ANN401  the side's
    """Return what a module of the side's package defines, by its newest name."""
    for path in ROOMS[room]:
        for known_as in (name, *FORMER.get(name, ())):
            with contextlib.suppress(ModuleNotFoundError, AttributeError):
                return getattr(importlib.import_module(f"{package}.{path}"), known_as)
    raise SystemExit(f"no module of this commit is known to be {room}")


def known(kind: type, **settings: object) -> Any:  # noqa: ANN401  an instance of `kind`
    """Build a value from those of the settings that its class knows."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in settings.items() if name in names})


def likely(chance: random.Random, part: float) -> bool:
    """Draw whether something that is so in this part of all cases is so."""
    return chance.random() < part


def cpu_set(cpus: Sequence[int]) -> Any:  # noqa: ANN401  the side's CpuSet
    """Return the side's set of these pCPUs."""
    return of("model", "CpuSet").of(cpus)


def draw_cpus(chance: random.Random, count: int) -> list[Any]:
    """Draw pCPUs: nodes, caches, cores with one to four threads, and cores of two strengths."""
    threads = chance.choice([1, 1, 2, 2, 4])
    per_cache, per_node = threads * chance.choice([1, 2, 4]), threads * chance.choice([2, 4, 8])
    told = likely(chance, 0.7)
    weak = chance.choice([PPM, PPM, PPM, 500_000, 700_000])
    cpus = []
    for cpu in range(count):
        is_weak = cpu // threads * 2 >= count // threads
        places = {
            "node": cpu // per_node,
            "core": cpu // threads,
            "cache": cpu // per_cache,
        }
        cpus.append(
            of("model", "Cpu")(
                cpu, **(places if told else {}), capacity_ppm=weak if is_weak else PPM
            )
        )
    return cpus


def draw_host(seed: int) -> Any:  # noqa: ANN401  the side's Host
    """Draw a host with everything that a planner decides on, but for its policy."""
    chance = random.Random(f"host/{seed}")  # noqa: S311  repeatable
    sizes = [1, 2, 2, 3, 4, 4, 6, 8, 8, 12, 16] if seed % 40 else [32, 64]
    cpus = draw_cpus(chance, chance.choice(sizes))
    numbers = [cpu.id for cpu in cpus]
    unit = chance.choice([100_000, 50_000, 10_000, 1])
    homes = chance.sample(numbers, chance.randint(1, len(numbers)))
    masked, fixed = chance.choice([0, 0, 0.3, 1]), chance.choice([0, 0.1])
    loose, per_guest = chance.choice([0, 0, 0.3, 1]), chance.choice([1, 1, 2, 4])
    mean_ppm = chance.choice([100_000, 200_000, 300_000, 400_000])
    vcpus = []
    for index in range(chance.randint(0, len(numbers) * chance.choice([2, 4, 5]))):
        guest, number = divmod(index, per_guest)
        whims = random.Random(f"guest/{seed}/{guest}")  # noqa: S311  the same for all its vCPUs
        shares, quota_ppm = whims.choice([1024, 1024, 256, 4096]), whims.choice([PPM, PPM, 400_000])
        narrow = likely(chance, masked)
        allowed = chance.sample(numbers, chance.randint(1, len(numbers))) if narrow else numbers
        floats, on = likely(chance, loose), chance.choice(homes)
        load_ppm = min(PPM, int(chance.expovariate(1 / mean_ppm)))
        vcpus.append(
            of("model", "Vcpu")(
                id=of("model", "VcpuId")(f"{guest:04}", 1, number),
                domain=f"g{guest}",
                load_ppm=min(load_ppm // unit * unit, quota_ppm),
                cpus=cpu_set(allowed if floats else [on]),
                allowed=cpu_set(allowed),
                on=on if on in allowed or not floats else None,
                fixed=likely(chance, fixed),
                memory_node=whims.choice([None, None, 0, 1]),
                shares=shares,
                quota_ppm=quota_ppm,
                spread=likely(whims, 0.1),
            )
        )
    host_ppm_max = chance.choice([0, 0, 300_000])
    busy = [
        of("model", "HostCpu")(cpu, chance.randint(0, host_ppm_max) // unit * unit) for cpu in cpus
    ]
    unsettled = cpu_set([chance.choice(numbers)] if likely(chance, 0.1) else [])
    return of("model", "Host")(tuple(busy), tuple(vcpus), unsettled)


def draw_policy(seed: str, steps_max: int = 12_000) -> Any:  # noqa: ANN401  the side's Policy
    """Draw what the administrator wants."""
    chance = random.Random(f"policy/{seed}")  # noqa: S311  repeatable
    max_moves = chance.choice([None, 32, 32, 3])
    floating = chance.choice([one for one in of("planner", "Floating") if one != "auto"])
    pin_to = chance.choice([one for one in of("units", "Granularity") if one != "auto"])
    fair_shares = likely(chance, 0.5)
    return known(
        of("planner", "Policy"),
        balance_threshold_ppm=chance.choice([50_000, 100_000, 100_000, 200_000]),
        min_gain_ppm=chance.choice([0, 50_000, 50_000, 100_000]),
        max_moves=max_moves,
        floating=floating,
        pin_to=pin_to,
        fair_shares=fair_shares,
        # as earlier commits call them
        moves_max=max_moves,
        granularity=pin_to,
        service_check=fair_shares,
        steps_max=steps_max,
    )
