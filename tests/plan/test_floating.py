"""Which floaters are left to the kernel."""

import dataclasses

import pytest
from builders import host

from vcpusched.model import Cpu, CpuSet, Granularity, Host, HostCpu
from vcpusched.plan.planner import MIN_WAIT_PPM, Floating, Policy, plan

WAITS = MIN_WAIT_PPM[Floating.AUTO]


def change(drawn: Host, name: str, **changes: object) -> Host:
    """Return the host with one of its vCPUs changed."""
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(vcpu, **changes) if vcpu.domain == name else vcpu  # type: ignore[arg-type]
            for vcpu in drawn.vcpus
        ),
    )


def isolated(drawn: Host, cpus: str) -> Host:
    """Return the host with some of its pCPUs isolated."""
    apart = CpuSet.parse(cpus)
    return dataclasses.replace(
        drawn,
        cpus=tuple(
            HostCpu(dataclasses.replace(cpu.cpu, isolated=cpu.id in apart)) for cpu in drawn.cpus
        ),
    )


@pytest.mark.parametrize("floating", Floating)
@pytest.mark.parametrize(
    ("apart", "wait_ppm"), [("", 0), ("", WAITS - 1), ("", WAITS), ("0-1", 0), ("1", 0)]
)
def test_which_floaters_are_pinned(floating: Floating, apart: str, wait_ppm: int) -> None:
    """{60 60} {}, both floating: with "auto" only who waits; on isolated pCPUs whatever is set.

    Isolated are those on which no floater finds one that is not.
    """
    drawn = isolated(host([60, 60], [], floating=True), apart)
    found = plan(change(drawn, "g0", wait_ppm=wait_ppm), Policy(floating=floating))
    auto = floating is Floating.AUTO and wait_ppm >= WAITS
    pinned = floating is Floating.PIN or apart == "0-1" or auto
    assert len(found.moves) == bool(pinned)


def test_who_is_pinned_to_a_set_does_not_float() -> None:
    """Six of 90 % on one of two caches of four: to let them use all of it is a pin like others."""
    cpus = tuple(HostCpu(Cpu(cpu, cache=cpu // 4)) for cpu in range(8))
    drawn = dataclasses.replace(host([90] * 6, [], allowed="0-7"), cpus=cpus)
    for vcpu in drawn.vcpus:
        drawn = change(drawn, vcpu.domain, cpus=CpuSet.parse("0-3"))
    policy = Policy(floating=Floating.AUTO, pin_to=Granularity.AUTO)
    assert {str(move.to_cpus) for move in plan(drawn, policy).moves} == {"4-7"}
