"""Makes a problem of a host: what counts where, and what may be moved where.

Rule: pure. All that must not be is left out here, and nothing later looks at a host.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence

from candidate.cpu_groups import Bins, without_wait
from candidate.problem import NOWHERE, Distances, Problem
from vcpusched.model import PPM, CpuSet, Granularity, Host, Vcpu


def problem_of(  # noqa: C901, PLR0912, PLR0913, PLR0917  one pass over 10,000 vCPUs
    host: Host,
    vcpus: Sequence[Vcpu],
    bins: Bins,
    span: int,
    min_gain: int,
    distances: Distances,
    *,
    measured: bool,
) -> Problem:
    """Return one view of a host, its vCPUs in the order of their ids."""
    base, known, whole = list(bins.base), bins.of_cpu.get, bins.whole
    closed = {bins.of_cpu[cpu] for cpu in host.unsettled if cpu in bins.of_cpu}
    open_bins = ~sum(1 << bin_ for bin_ in closed)
    resting = closed | without_wait(host, bins)
    masks: dict[int, int] = {}
    pools: defaultdict[int, int] = defaultdict(int)
    size, home, allowed, memory = [], [], [], {}
    for index, vcpu in enumerate(vcpus):
        cpus, load, place = vcpu.cpus, vcpu.load_ppm, None
        bits = cpus.bits
        if whole != PPM:
            load = load * PPM // whole
        size.append(load)
        bound = bits.bit_count() < 2  # noqa: PLR2004
        if bound:
            place = known(bits.bit_length() - 1)
        elif bins.are_sets:
            reach = bins.within(cpus, whole=False)
            if reach and not reach & (reach - 1):
                bound, place = True, reach.bit_length() - 1
        if not bound:
            if measured and vcpu.on is not None and bits >> vcpu.on & 1:
                place = known(vcpu.on)
            if place is None:
                pools[bits] += load
        if place is None:
            home.append(NOWHERE)
            allowed.append(0)
            continue
        home.append(place)
        base[place] += load
        may = vcpu.allowed.bits
        if (
            bound is measured
            or vcpu.fixed
            or not load
            or place in resting
            or (bound and may == bits)
        ):
            allowed.append(0)
            continue
        mask = masks.get(may)
        if mask is None:
            mask = masks[may] = bins.within(vcpu.allowed, whole=True) & open_bins
        allowed.append(mask)
        if vcpu.memory_node is not None:
            memory[index] = vcpu.memory_node
    merged: defaultdict[int, int] = defaultdict(int)
    for vcpu_bits, load in pools.items():
        merged[bins.within(CpuSet(vcpu_bits), whole=False)] += load
    problem = Problem(
        size=size,
        home=home,
        allowed=allowed,
        base=base,
        judged=tuple(bin_ for bin_ in range(len(base)) if bin_ not in closed),
        span=span,
        min_gain=min_gain,
        vcpus=vcpus,
        origin=home,
        lacks=bins.lacks,
        pools=tuple(
            (tuple(bin_ for bin_ in range(len(base)) if mask >> bin_ & 1), load)
            for mask, load in sorted(merged.items(), key=lambda one: (one[0].bit_count(), one[0]))
            if mask
        ),
        sites=bins.sites,
        thread=bins.thread,
        memory=memory,
        distances=distances,
        keeps_apart=not bins.are_sets or bins.granularity is Granularity.CORE,
    )
    # From its first move to its last, a plan must not bring two vCPUs of such a guest onto a core.
    for items in problem.spread.values() if any(vcpu.spread for vcpu in vcpus) else ():
        for item, other in itertools.permutations(items, 2):
            if home[other] != NOWHERE:
                allowed[item] &= ~problem.cores[home[other]]
    return problem
