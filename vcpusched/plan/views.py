"""Makes a problem of a host: what counts where, and what may be moved where.

Rule: pure. All that must not be is left out here, and nothing later reads a host.
"""

import itertools
from collections import defaultdict
from functools import cache

from vcpusched.model import PPM, CpuSet, Host
from vcpusched.plan.cpu_groups import Bins
from vcpusched.plan.moves import MIN_WAIT_PPM, Policy
from vcpusched.plan.problem import NOWHERE, Problem


def problem_of(host: Host, bins: Bins, policy: Policy, *, measured: bool) -> Problem:
    """Return one view of a host; its vCPUs are the items."""
    vcpus = host.vcpus
    guest = [vcpu.id.uuid for vcpu in vcpus]
    size = [vcpu.load_ppm * PPM // bins.whole for vcpu in vcpus]
    known, isolated, min_wait = bins.of_cpu.get, bins.isolated.bits, MIN_WAIT_PPM[policy.floating]
    judged, open_bins = {*bins.judged}, sum(1 << one for one in bins.judged)
    masks = cache(lambda bits: bins.within(CpuSet(bits), most=True) & open_bins)
    touched = cache(lambda bits: bins.within(CpuSet(bits), most=False))
    base, current, allowed = list(bins.base), list[int](), list[int]()
    memory, pools = dict[int, int](), defaultdict[int, int](int)
    spread = defaultdict[str, list[int]](list)
    for item, (vcpu, load) in enumerate(zip(vcpus, size, strict=True)):
        bits, mask, movable = vcpu.cpus.bits, masks(vcpu.allowed.bits), not measured
        if vcpu.spread:
            spread[vcpu.id.uuid].append(item)
        bound = bits.bit_count() < 2  # noqa: PLR2004  as nearly all are, and this is quicker
        place = known(bits.bit_length() - 1) if bound else bins.bin_of(vcpu.cpus)
        if place is None and (on := vcpu.on) is not None and bits >> on & 1:
            # The kernel moves none off an isolated pCPU.
            stuck = isolated >> on & 1 == 1
            movable = stuck or vcpu.wait_ppm >= min_wait
            place = known(on) if measured or stuck else None
        if place is None:
            pools[touched(bits)] += load
            current.append(NOWHERE)
            allowed.append(0)
            continue
        base[place] += load
        current.append(place)
        can = movable and load and not vcpu.fixed and place in judged
        allowed.append(mask if can and mask != 1 << place else 0)
        if can and vcpu.memory_node is not None:
            memory[item] = vcpu.memory_node
    # From its first move to its last, a plan must not bring two vCPUs of such a guest onto a core.
    for items in spread.values():
        for item, other in itertools.permutations(items, 2):
            if current[other] != NOWHERE:
                allowed[item] &= ~bins.cores[current[other]]
    return Problem(
        bins=bins,
        vcpus=vcpus,
        size=size,
        current=current,
        allowed=allowed,
        base=base,
        span=policy.balance_threshold_ppm,
        min_gain=policy.min_gain_ppm,
        guest=guest if len({*guest}) < len(guest) else None,
        spread=spread,
        origin=current,
        pools=tuple(
            (tuple(CpuSet(mask)), load)
            for mask, load in sorted(pools.items(), key=lambda one: (one[0].bit_count(), one[0]))
            if mask
        ),
        memory=memory,
        surplus=bins.waiting,
        measured=measured,
    )
