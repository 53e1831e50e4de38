"""Makes a problem of a host: what counts where, and what may be moved where.

Rule: pure. All that must not be is left out here, and nothing later looks at a host.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence

from vcpusched.model import PPM, CpuSet, Host, Vcpu
from vcpusched.plan.cpu_groups import Bins, waiting
from vcpusched.plan.problem import NOWHERE, Problem


def problem_of(  # noqa: C901, PLR0912, PLR0913, PLR0915  one pass over 10,000 vCPUs
    host: Host,
    vcpus: Sequence[Vcpu],
    bins: Bins,
    span: int,
    min_gain: int,
    *,
    measured: bool,
    min_wait: int = 0,
) -> Problem:
    """Return one view of a host, its vCPUs in the order of their ids.

    In the measured view floaters may be bound that waited for `min_wait` of the period. One that
    ran on an isolated pCPU counts there and may be bound in either view, since the kernel moves
    none off it.
    """
    base, known, whole = list(bins.base), bins.of_cpu.get, bins.whole
    closed = {bins.of_cpu[cpu] for cpu in host.unsettled if cpu in bins.of_cpu}
    open_bins = ~sum(1 << bin_ for bin_ in closed)
    surplus = waiting(host, bins)
    isolated = bins.isolated.bits
    masks: dict[int, int] = {}
    pools: defaultdict[int, int] = defaultdict(int)
    home, allowed, guest, memory = [], [], [], {}
    size = [vcpu.load_ppm for vcpu in vcpus]
    if whole != PPM:
        size = [load * PPM // whole for load in size]
    number, uuid, domain_id = -1, None, None
    for index, (vcpu, load) in enumerate(zip(vcpus, size, strict=True)):
        identity = vcpu.id
        if identity.uuid != uuid or identity.domain_id != domain_id:
            number, uuid, domain_id = number + 1, identity.uuid, identity.domain_id
        guest.append(number)
        bits, place = vcpu.cpus.bits, None
        bound = bits.bit_count() < 2  # noqa: PLR2004
        if bound:
            place = known(bits.bit_length() - 1)
        elif bins.are_sets:
            place = bins.home(vcpu)
            bound = place is not None
        stuck = not bound and vcpu.on is not None and (bits & isolated) >> vcpu.on & 1 == 1
        if not bound:
            if (measured or stuck) and vcpu.on is not None and bits >> vcpu.on & 1:
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
            (bound is measured and not stuck)
            or vcpu.fixed
            or not load
            or place in closed
            or not (bound or stuck or vcpu.wait_ppm >= min_wait)
        ):
            allowed.append(0)
            continue
        mask = masks.get(may)
        if mask is None:
            mask = masks[may] = bins.within(vcpu.allowed, whole=True) & open_bins
        allowed.append(0 if mask == 1 << place else mask)
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
        guest=guest if number + 1 < len(guest) else None,
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
        distances=host.node_distances,
        measured=measured,
        surplus=surplus,
        cores=bins.cores,
    )
    # From its first move to its last, a plan must not bring two vCPUs of such a guest onto a core.
    for items in problem.spread.values():
        for item, other in itertools.permutations(items, 2):
            if home[other] != NOWHERE:
                allowed[item] &= ~problem.cores[home[other]]
    return problem
