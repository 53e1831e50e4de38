"""What the vCPUs of a bound host get, worked out exactly and apart from the planner."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from vcpusched.model import PPM_PER_POINT, CpuSet, Host, HostCpu, VcpuId


def core_of(cpu: HostCpu) -> str:
    """Return which core a pCPU is on."""
    return f"alone {cpu.id}" if cpu.cpu.core is None else f"{cpu.cpu.core}"


def weights_of(drawn: Host) -> dict[VcpuId, Fraction]:
    """Return the weight of each vCPU, exactly; one that only ticks takes none of its guest's."""
    with_load = Counter(vcpu.id.uuid for vcpu in drawn.vcpus if vcpu.load_ppm >= PPM_PER_POINT)
    return {vcpu.id: Fraction(vcpu.shares, with_load[vcpu.id.uuid] or 1) for vcpu in drawn.vcpus}


def demands(drawn: Host) -> dict[VcpuId, Fraction]:
    """Return what each vCPU wants."""
    return {vcpu.id: Fraction(min(vcpu.load_ppm, vcpu.quota_ppm)) for vcpu in drawn.vcpus}


def oracle(drawn: Host, moved: Mapping[VcpuId, CpuSet]) -> dict[VcpuId, Fraction]:
    """Return what each vCPU of a bound host gets, exactly."""
    weight, got = weights_of(drawn), demands(drawn)

    def rise(cpus: Sequence[HostCpu], can_ppm: int) -> None:
        """Let a level rise on pCPUs until all that they can give is taken."""
        bits = sum(1 << cpu.id for cpu in cpus)
        wants = {
            vcpu.id: got[vcpu.id]
            for vcpu in drawn.vcpus
            if moved.get(vcpu.id, vcpu.cpus).bits & bits
        }
        gives = Fraction(max(can_ppm - sum(cpu.host_load_ppm for cpu in cpus), can_ppm // 2))
        level, most = Fraction(0), min(gives, Fraction(sum(wants.values())))
        while (taken := sum(min(want, level * weight[one]) for one, want in wants.items())) < most:
            rising = [one for one, want in wants.items() if want > level * weight[one]]
            level += min(
                (most - taken) / sum(weight[one] for one in rising),
                min(wants[one] / weight[one] for one in rising) - level,
            )
        got.update({one: min(want, level * weight[one]) for one, want in wants.items()})

    cores: defaultdict[str, list[HostCpu]] = defaultdict(list)
    for cpu in drawn.cpus:
        cores[core_of(cpu)].append(cpu)
        rise([cpu], cpu.cpu.capacity_ppm)
    for cpus in cores.values():
        *others, best = sorted(cpu.cpu.capacity_ppm for cpu in cpus)
        rise(cpus, best + sum(others) // 4)
    return got
