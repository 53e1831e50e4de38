"""Moves of no plan: pins of ours that are made again, and originals that are restored.

Rule: pure; says which moves a sample asks for, and what speaks against a move by a definition that
was read since. A vCPU that is held is left alone.
"""

from collections.abc import Iterator

from vcpusched.act.feedback import Finding
from vcpusched.model import NO_CPUS, PPM, CpuSet, VcpuId
from vcpusched.observe.demand import CROWDED_PPM, WAITS_PPM
from vcpusched.observe.placement_rules import Placement
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Definition, DomainReading, Sample, VcpuReading
from vcpusched.text import percent


def repairs(sample: Sample, placement: Placement) -> Iterator[Move]:
    """Return the moves that end pins of ours that are not allowed any more, or make pins again.

    What is not allowed any more is so by the settings, or by definitions: the guest's own, or those
    of others that reserve pCPUs.
    """
    online = sample.online
    for domain, reading, pin, original in _pins(sample):
        if not domain.definition.allowed:
            continue
        why = _why_not(placement, domain.name, domain.definition, reading.vcpu, pin & online)
        to_cpus = (original if why else pin) & online & domain.definition.cpuset
        # Of an original with pCPUs that are offline the rest may be in force already, or none left.
        if (why or reading.undone) and to_cpus and to_cpus != reading.affinity:
            vcpu, cause = _id(domain, reading), Cause.NOT_ALLOWED if why else Cause.RESET
            yield Move(vcpu, domain.name, reading.affinity, to_cpus, 0, reason=why, cause=cause)


def worse_bound(sample: Sample, finding: Finding) -> Iterator[Move]:
    """Return the moves that restore each vCPU that we bound, that waits, and need not.

    It need not where the other pCPUs of its original affinity were idle for as long as it waited,
    together. What one takes the next cannot have. Where its own pCPU had room it is only jostled.
    """
    cpus = [cpu.id for cpu in finding.host.cpus if not cpu.cpu.isolated]  # there nobody is moved
    idle_ppm = {cpu: PPM - finding.busy.get(cpu, PPM) for cpu in cpus}
    loads_ppm = {vcpu.id: vcpu.load_ppm for vcpu in finding.host.vcpus}
    online = sample.online
    for domain, reading, _pin, whole in _pins(sample):
        vcpu = _id(domain, reading)
        wait_ppm = finding.waits.get(vcpu, 0)
        is_crowded = all(finding.busy.get(cpu, 0) >= CROWDED_PPM for cpu in reading.affinity)
        if wait_ppm < WAITS_PPM or not is_crowded:
            continue  # as most do: what follows goes through all pCPUs
        # The kernel takes none that is offline, or outside of the guest's cpuset.
        original = whole & online & domain.definition.cpuset
        others = [cpu for cpu in original if cpu in idle_ppm and cpu not in reading.affinity]
        room_ppm = sum(idle_ppm[cpu] for cpu in others)
        if len(original) <= len(reading.affinity) or wait_ppm > room_ppm:
            continue
        for cpu in others:
            idle_ppm[cpu] -= idle_ppm[cpu] * wait_ppm // room_ppm
        why = (
            f"it waited for {percent(wait_ppm)} of the time on pCPU {reading.affinity}, while"
            f" others of its original affinity {original} idled"
        )
        load_ppm, cause = loads_ppm.get(vcpu, 0), Cause.WORSE_OFF
        yield Move(vcpu, domain.name, reading.affinity, original, load_ppm, reason=why, cause=cause)


def objection(move: Move, definition: Definition, placement: Placement) -> str:
    """Return what speaks against a move by a definition that was read just now; nothing if none."""
    if move.cause is Cause.WORSE_OFF:
        # That undoes what was done, so what plans may use does not matter.
        stays = move.to_cpus.is_within(definition.allowed.get(move.vcpu.vcpu, NO_CPUS))
        return "" if stays else "the guest's definition does not allow that any more"
    ends = move.cause is Cause.NOT_ALLOWED
    cpus = move.from_cpus if ends else move.to_cpus
    why = _why_not(placement, move.domain, definition, move.vcpu.vcpu, cpus)
    return why if not ends else "" if why else "its pin is allowed again"


def _why_not(
    placement: Placement, name: str, definition: Definition, vcpu: int, cpus: CpuSet
) -> str:
    # While the machine's nodes are not known no pin is wrong for them, nor too wide.
    if not placement.nodes and vcpu in definition.memory_strict:
        return ""
    if placement.nodes and cpus and not placement.binds(cpus):
        return f"pin_to does not ask for pCPUs {cpus} any more"
    return placement.objection(name, definition, vcpu, cpus)


def _pins(sample: Sample) -> Iterator[tuple[DomainReading, VcpuReading, CpuSet, CpuSet]]:
    """Return the pins of ours that are not held, and the original affinities."""
    for domain in sample.domains:
        for reading in domain.vcpus:
            pin, original = reading.pin, reading.original
            if pin is not None and original is not None and not reading.held:
                yield domain, reading, pin, original


def _id(domain: DomainReading, reading: VcpuReading) -> VcpuId:
    return VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
