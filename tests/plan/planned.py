"""Hosts for tests of plans, what comes of a plan, and the properties of every one."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from builders import after as carried_out
from builders import random_host

from vcpusched.model import PPM, Cpu, CpuSet, DomainUuid, Granularity, Host, HostCpu, Vcpu, VcpuId
from vcpusched.plan.cpu_groups import bins_of
from vcpusched.plan.moves import Move, Plan, Policy, Stop
from vcpusched.plan.planner import Floating, plan
from vcpusched.plan.views import problem_of

CAPACITIES = (PPM, PPM, 600_000, 800_000)


def built_host(seed: int) -> Host:
    """Return a host from a seed, two thirds of them with nodes, caches, cores, weak pCPUs, guests.

    Guests may keep their vCPUs apart, and have memory on a node. On a third of these hosts most
    pCPUs are isolated.
    """
    drawn, chance = random_host(seed), random.Random(-seed)
    if seed % 3 == 0:
        return drawn
    per_core, per_cache = chance.choice([1, 2, 2]), chance.choice([2, 4])
    per_node = per_cache * chance.choice([1, 2])
    weak, alone = chance.random() < 0.3, random.Random(f"isolated {seed}")
    isolated = 0.7 if alone.random() < 0.3 else 0
    cpus = []
    for index, cpu in enumerate(drawn.cpus):
        core = index // per_core
        capacity = random.Random(f"{seed} {core}").choice(CAPACITIES) if weak else PPM
        is_isolated = alone.random() < isolated
        site = Cpu(cpu.id, index // per_node, core, index // per_cache, capacity, is_isolated)
        cpus.append(replace(cpu, cpu=site))
    nodes = [cpu.cpu.node for cpu in cpus]
    apart, memory = chance.random() < 0.3, chance.random() < 0.3
    vcpus = [
        replace(
            vcpu,
            spread=apart,
            memory_node=chance.choice(nodes) if memory else None,
            wait_ppm=alone.choice([0, 100_000]),
        )
        for vcpu in drawn.vcpus
    ]
    return replace(drawn, cpus=tuple(cpus), vcpus=tuple(vcpus))


def host_of_sets(seed: int) -> Host:
    """Return a host of 2 to 8 caches from a seed, half of its vCPUs bound to all of one."""
    chance = random.Random(f"sets {seed}")
    each, count = chance.choice([2, 4]), chance.choice([8, 12, 16])
    drawn = random_host(seed, count, chance.randint(count // 2, 3 * count))
    cpus = tuple(
        replace(cpu, cpu=Cpu(cpu.id, index // (2 * each), index // 2, index // each))
        for index, cpu in enumerate(drawn.cpus)
    )
    caches = [CpuSet.of(cpu.id for cpu in cpus[at : at + each]) for at in range(0, count, each)]
    vcpus = []
    for vcpu in drawn.vcpus:
        may = [cache for cache in caches if cache.is_within(vcpu.allowed)]
        bound = vcpu.is_bound and may and chance.random() < 0.5
        vcpus.append(replace(vcpu, cpus=chance.choice(may), on=None) if bound else vcpu)
    return replace(drawn, cpus=cpus, vcpus=tuple(vcpus))


def host_of_large_sets(seed: int, count: int, each: int) -> Host:
    """Return hyper-threads in caches of so many, vCPUs with loads as in clouds bound to these."""
    chance, every = random.Random(f"large sets {seed}"), CpuSet.of(range(count))
    cpus = tuple(HostCpu(Cpu(cpu, cpu // (2 * each), cpu // 2, cpu // each)) for cpu in every)
    caches = [CpuSet.of(range(at, at + each)) for at in range(0, count, each)]
    skew, vcpus = [chance.random() ** 2 + 0.1 for _ in caches], list[Vcpu]()
    most_ppm = chance.uniform(0.25, 0.6) * count * PPM
    while sum(vcpu.load_ppm for vcpu in vcpus) < most_ppm:
        (cache,) = chance.choices(caches, skew)
        load_ppm = int(min(1.0, chance.lognormvariate(-1.3, 0.9)) * PPM)
        name = f"{len(vcpus):04}"
        vcpus.append(Vcpu(VcpuId(DomainUuid(name), 1, 0), name, load_ppm, cache, every))
    return Host(cpus, tuple(vcpus))


def is_stuck(drawn: Host, vcpu: Vcpu) -> bool:
    """Return whether a vCPU floats where the kernel moves none: on an isolated pCPU."""
    isolated = {cpu.id for cpu in drawn.cpus if cpu.cpu.isolated}
    return not vcpu.is_bound and vcpu.on in isolated


def seeded_policy(seed: int) -> Policy:
    """Return a policy from a seed; the long search is for every 20th."""
    chance = random.Random(seed)
    return Policy(
        balance_threshold_ppm=chance.choice([100_000, 100_000, 50_000, 250_000, 1]),
        min_gain_ppm=chance.choice([0, 20_000, 50_000]),
        floating=chance.choice([Floating.PIN, Floating.PIN, Floating.KERNEL]),
        steps_max=1_000 if seed % 20 else Policy().steps_max,
    )


def steps_of(found: Plan) -> list[tuple[Move, ...]]:
    """Return the moves of a plan as steps: an exchange is one, and so is any other move."""
    cut, rest = [], list(found.moves)
    while rest:
        size = 2 if rest[0].exchanged_with else 1
        cut.append(tuple(rest[:size]))
        del rest[:size]
    return cut


def _loads(drawn: Host, policy: Policy, found: Plan) -> tuple[list[int], dict[VcpuId, int]]:
    """Return the load of each bin as the planner compares it, and where each vCPU counts."""
    bins = bins_of(drawn, policy.pin_to)
    problem = problem_of(drawn, bins, policy, measured=found.binds_floaters)
    currents = zip(problem.vcpus, problem.current, strict=True)
    places = {vcpu.id: bin_ for vcpu, bin_ in currents if bin_ >= 0}
    return problem.levels(), places


def _second_threads(drawn: Host, levels: Sequence[int]) -> list[int]:
    """Return the load of the second busiest thread of each core, the largest first."""
    cores: defaultdict[int | None, list[int]] = defaultdict(list)
    for cpu, load in zip(sorted(drawn.cpus, key=lambda cpu: cpu.id), levels, strict=True):
        cores[cpu.cpu.core].append(load)
    cores.pop(None, None)
    return sorted((sorted(of)[-2] for of in cores.values() if len(of) > 1), reverse=True)


def check_moves(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that no vCPU moves twice, each move is a change, and no rule of the host is broken."""
    vcpus = {vcpu.id: vcpu for vcpu in drawn.vcpus}
    assert len({move.vcpu for move in found.moves}) == len(found.moves)
    for move in found.moves:
        vcpu = vcpus[move.vcpu]
        assert not vcpu.fixed
        assert (move.domain, move.load_ppm) == (vcpu.domain, vcpu.load_ppm)
        assert move.from_cpus == vcpu.cpus != move.to_cpus
        assert len(move.to_cpus) == 1
        assert move.to_cpus.is_within(vcpu.allowed)
        assert not move.to_cpus & drawn.unsettled
        assert vcpu.is_bound is not found.binds_floaters or is_stuck(drawn, vcpu)
        assert not (vcpu.is_bound and vcpu.cpus & drawn.unsettled)
    assert not (found.binds_floaters and policy.floating is Floating.KERNEL)


def check_figures(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that gaps are reported as they are, the gap never grows, and the loads shrink."""
    bins = bins_of(drawn, policy.pin_to)
    after = carried_out(drawn, found)
    before_levels, _ = _loads(drawn, policy, found)
    problem = problem_of(after, bins, policy, measured=found.binds_floaters)
    # In the measured view those that were bound count where they are now, like all others.
    after_levels = problem.levels()
    closed = {bins.of_cpu[cpu] for cpu in drawn.unsettled if cpu in bins.of_cpu}
    before, later = (
        sorted((load for bin_, load in enumerate(levels) if bin_ not in closed), reverse=True)
        or [0]
        for levels in (before_levels, after_levels)
    )
    assert found.gap_before_ppm == before[0] - before[-1]
    assert found.gap_after_ppm == later[0] - later[-1]
    assert found.gap_after_ppm <= found.gap_before_ppm
    if found.moves:
        cores = (_second_threads(drawn, levels) for levels in (after_levels, before_levels))
        assert later < before or (later == before and next(cores) < next(cores))
    assert found.balanced is (found.gap_before_ppm < policy.balance_threshold_ppm)
    assert not (found.balanced and found.moves)
    assert (found.stop is Stop.BALANCED) is (found.gap_after_ppm < policy.balance_threshold_ppm)
    if policy.max_moves is None:
        assert found.stop is not Stop.MOVE_LIMIT


def check_steps(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that no beginning has a higher peak than the host, and an exchange goes to and fro."""
    levels, places = _loads(drawn, policy, found)
    bins = bins_of(drawn, policy.pin_to)
    closed = {bins.of_cpu[cpu] for cpu in drawn.unsettled if cpu in bins.of_cpu}
    if any(vcpu.id not in places and vcpu.load_ppm for vcpu in drawn.vcpus):
        return  # where floaters are poured, they flow with each step: there is no peak to judge
    peak = max((load for bin_, load in enumerate(levels) if bin_ not in closed), default=0)
    for step in steps_of(found):
        targets = [bins.of_cpu[next(iter(move.to_cpus))] for move in step]
        if len(step) > 1:
            assert targets == [places[move.vcpu] for move in reversed(step)]
        for move, target in zip(step, targets, strict=True):
            load = move.load_ppm * PPM // bins.whole
            levels[places[move.vcpu]] -= load
            levels[target] += load
        assert all(levels[target] <= peak for target in targets)


def check_apart(drawn: Host, found: Plan) -> None:
    """Hold that no vCPU of a guest that spreads joins another one on a core, at any point."""
    core = {
        cpu.id: (0, cpu.id) if cpu.cpu.core is None else (1, cpu.cpu.core) for cpu in drawn.cpus
    }
    vcpus = {vcpu.id: vcpu for vcpu in drawn.vcpus}
    held: dict[VcpuId, set[tuple[int, int]]] = {
        vcpu.id: {core[cpu] for cpu in vcpu.cpus if cpu in core}
        for vcpu in drawn.vcpus
        if vcpu.spread and vcpu.is_bound
    }
    for move in found.moves:
        if not vcpus[move.vcpu].spread:
            continue
        (target,) = (core[cpu] for cpu in move.to_cpus)
        for other, cores in held.items():
            guest = (other.uuid, other.domain_id) == (move.vcpu.uuid, move.vcpu.domain_id)
            assert not (guest and other != move.vcpu and target in cores)
        held.setdefault(move.vcpu, set()).add(target)


def check_lone(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that a vCPU alone on the busiest pCPU stays, where it makes the load."""
    if any(cpu.cpu.capacity_ppm != PPM or cpu.cpu.core is not None for cpu in drawn.cpus):
        return  # it may find a stronger pCPU, or leave a busy sibling
    levels, places = _loads(drawn, policy, found)
    crowd, sizes = Counter(places.values()), {vcpu.id: vcpu.load_ppm for vcpu in drawn.vcpus}
    bins = bins_of(drawn, policy.pin_to)
    for move in found.moves:
        bin_ = places[move.vcpu]
        if levels[bin_] == max(levels) and crowd[bin_] == 1:
            assert levels[bin_] > sizes[move.vcpu] or bins.are_sets


def check_rest(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that nothing is left to do, planned again; no floater is bound a second time."""
    if any(vcpu.spread for vcpu in drawn.vcpus):
        return  # into a core that one of a guest left, only the next plan may move another
    again = plan(carried_out(drawn, found), policy)
    if found.binds_floaters:
        once = {move.vcpu for move in found.moves}
        assert found.stop is Stop.BALANCED
        assert not again.binds_floaters or not once & {move.vcpu for move in again.moves}
    else:
        assert not again.moves or again.binds_floaters


def check_limit(drawn: Host, policy: Policy, whole: Plan, max_moves: int) -> None:
    """Hold that a plan cut short begins as the whole one, and repeated comes to rest.

    Where the limit allows no beginning that helps, it is one step from further on.
    """
    limited = replace(policy, max_moves=max_moves)
    now = drawn
    for _ in range(3 * len(drawn.vcpus) + 1):
        found = plan(now, limited)
        assert len(found.moves) <= max_moves
        check_moves(now, limited, found)
        check_figures(now, limited, found)
        check_steps(now, limited, found)
        check_apart(now, found)
        if now is drawn and not found.binds_floaters and not whole.binds_floaters:
            begins = found.moves == whole.moves[: len(found.moves)]
            changes = {(move.vcpu, move.to_cpus) for move in whole.moves}
            one_step = len(steps_of(found)) == 1 and changes >= {
                (move.vcpu, move.to_cpus) for move in found.moves
            }
            assert begins or one_step
            if found.stop is Stop.MOVE_LIMIT:
                assert len(found.moves) < len(whole.moves)
        if not found.moves:
            break
        now = carried_out(now, found)
    assert not found.moves


def check(drawn: Host, policy: Policy) -> Plan:
    """Hold the properties of every plan that is not cut short."""
    found = plan(drawn, policy)
    check_moves(drawn, policy, found)
    check_figures(drawn, policy, found)
    check_steps(drawn, policy, found)
    check_apart(drawn, found)
    check_lone(drawn, policy, found)
    check_rest(drawn, policy, found)
    return found


def shuffled(drawn: Host, chance: random.Random) -> Host:
    """Return the same host given in another order."""
    cpus, vcpus = list(drawn.cpus), list(drawn.vcpus)
    chance.shuffle(cpus)
    chance.shuffle(vcpus)
    return replace(drawn, cpus=tuple(cpus), vcpus=tuple(vcpus))


def copies(drawn: Host, count: int = 20) -> list[Host]:
    """Return the host, and copies with loads off by up to 2 points and names shuffled."""
    found = [drawn]
    for seed in range(count):
        chance = random.Random(seed)
        guests = sorted({vcpu.id.uuid for vcpu in drawn.vcpus})
        others = dict(zip(guests, chance.sample(guests, len(guests)), strict=True))
        found.append(
            replace(
                drawn,
                vcpus=tuple(
                    replace(
                        vcpu,
                        id=vcpu.id._replace(uuid=others[vcpu.id.uuid]),
                        load_ppm=_off(vcpu, chance),
                    )
                    for vcpu in drawn.vcpus
                ),
            )
        )
    return found


def _off(vcpu: Vcpu, chance: random.Random) -> int:
    return max(1, min(PPM, vcpu.load_ppm + chance.randint(-20_000, 20_000)))


__all__ = ["Granularity", "built_host", "carried_out", "check", "check_limit", "copies", "shuffled"]
