"""How few pin changes could do what a plan does.

Rule: pure; a bound from below, by the planner's own count, never an estimate.
"""

from vcpusched.model import PPM, CpuSet, Host
from vcpusched.planner import Plan
from vcpusched.search import UNBOUNDED, Task, lower_bound


def moves_least(host: Host, plan: Plan) -> int | None:
    """Give how many pin changes it takes at least to bring the loads where the plan brings them.

    That is between its lowest and its highest load. None for plans that pin to sets of pCPUs, whose
    loads are means, and where pCPUs differ, whose loads are shares of what each can do.
    """
    if not plan.moves:
        return 0
    after = dict(plan.loads_after_ppm)
    if any(len(move.to_cpus) > 1 for move in plan.moves):
        return None
    if any(cpu.cpu.capacity_ppm != PPM for cpu in host.cpus):
        return None
    cpus = {cpu.id: position for position, cpu in enumerate(host.cpus)}
    start = [cpu.host_load_ppm for cpu in host.cpus]
    loads: list[int] = []
    home: list[int] = []
    may: list[int] = []
    masks: dict[CpuSet, int] = {}
    is_all_here = True
    for vcpu in host.vcpus:
        place = next(iter(vcpu.cpus)) if vcpu.is_bound else vcpu.on
        if place not in cpus or not (vcpu.is_bound or plan.binds_floaters):
            # What the kernel spreads flows to where there is room, and away from where there is
            # none: then only what is bound to a pCPU needs a pin to leave it.
            is_all_here = False
            continue
        start[cpus[place]] += vcpu.load_ppm
        loads.append(vcpu.load_ppm)
        home.append(cpus[place])
        if vcpu.fixed:
            may.append(0)
            continue
        if vcpu.allowed not in masks:
            masks[vcpu.allowed] = _positions(vcpu.allowed, cpus)
        may.append(masks[vcpu.allowed] & ~(1 << cpus[place]))
    judged = {cpu for cpu in cpus if cpu in after and cpu not in host.unsettled}
    lowest = min((after[cpu] for cpu in judged), default=0) if is_all_here else -1
    highest = max((after[cpu] for cpu in judged), default=UNBOUNDED)
    return lower_bound(
        Task(
            loads=loads,
            home=home,
            may=may,
            start=start,
            low=[lowest if cpu in judged else -1 for cpu in cpus],
            high=[highest if cpu in judged else UNBOUNDED for cpu in cpus],
            span=highest - lowest + 1,
            tops=(),
            bottoms=(),
        )
    )


def _positions(allowed: CpuSet, cpus: dict[int, int]) -> int:
    return sum(1 << position for cpu, position in cpus.items() if cpu in allowed)
