"""The fewest pin changes after which a host is balanced, proven by the HiGHS solver.

Rule: nothing is believed on the solver's word that can be checked. An answer is computed again in
integers; a verdict that the time did not suffice for is `UNKNOWN`, and counted as that.

Model: one binary variable for each vCPU and each pCPU that it may be on (where it is now, and, not
    fixed, those of its mask), exactly one of which is 1; a level `low` such that the load of each
    pCPU is between `low` and `low` plus the largest gap that is below the threshold; and the
    fewest vCPUs elsewhere than now. Host load and fixed vCPUs count.
    The planner leaves a vCPU alone that is alone on its pCPU. The optimum knows no such rule: what
    keeping to it costs shows in the planner's ratio.
Numbers: in units of a tenth of a point, all loads are integers below 100,000. Rows get half a unit
    of slack, so that a tolerance of a millionth neither hides an answer nor lets a wrong one pass.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import highspy
from plans.hosts import UNIT_PPM, gap_ppm

from vcpusched.model import CpuSet, Host, Vcpu, VcpuId
from vcpusched.plan.planner import Policy

HALF: Final = 0.5


class Verdict(StrEnum):
    """What is known about a host."""

    PROVEN = "proven"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


class SolverError(Exception):
    """The solver contradicts integer arithmetic, or could not be used at all."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """A verdict; `pins` is the fewest pin changes if `PROVEN`, `pins_min` a bound in any case."""

    verdict: Verdict
    pins: int | None = None
    pins_min: int = 0


def solve(host: Host, policy: Policy, *, limit_s: float) -> Optimum:
    """Find the fewest pin changes that bring the gap of a host below the threshold.

    All vCPUs must be bound, and all loads whole units. Raises SolverError where the solver's
    answer does not stand up to integer arithmetic.
    """
    gap_max = (policy.balance_threshold_ppm - 1) // UNIT_PPM
    with _without_banner():
        model = highspy.Highs()
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("time_limit", float(limit_s)),
        ("mip_rel_gap", 0.0),
        # The objective is a whole number: closer than one is exact.
        ("mip_abs_gap", HALF),
    ):
        model.setOptionValue(option, value)
    # For each vCPU the variable of each pCPU that it may be on.
    choices = [
        {
            cpu: model.addBinary(obj=float(cpu not in vcpu.cpus))
            for cpu in _feasible(vcpu, host.online)
        }
        for vcpu in host.vcpus
    ]
    for choice in choices:
        model.addConstr(model.qsum(choice.values()) == 1)
    _bound_levels(model, host, choices, gap_max)
    model.minimize()
    status, info = model.getModelStatus(), model.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Optimum(Verdict.UNREACHABLE)
    if status == highspy.HighsModelStatus.kTimeLimit:
        # A bound of 2.0000001 proves 3, but one of 2.0 only 2.
        pins_min = -int(-(max(0.0, info.mip_dual_bound) - HALF / 1000) // 1)
        return Optimum(Verdict.UNKNOWN, pins_min=pins_min)
    if status != highspy.HighsModelStatus.kOptimal:
        raise SolverError(f"HiGHS ended with {model.modelStatusToString(status)}")
    values = model.getSolution().col_value
    assignment = {
        vcpu.id: max(choice, key=lambda cpu: values[choice[cpu].index])
        for vcpu, choice in zip(host.vcpus, choices, strict=True)
    }
    pins = round(info.objective_function_value)
    check(host, policy, assignment, pins)
    return Optimum(Verdict.PROVEN, pins, pins)


def check(host: Host, policy: Policy, assignment: Mapping[VcpuId, int], pins: int) -> None:
    """Compute an answer again in integers. Raises SolverError where it is wrong."""
    for vcpu in host.vcpus:
        if assignment[vcpu.id] not in _feasible(vcpu, host.online):
            raise SolverError(f"HiGHS put {vcpu.id} on a pCPU where it is not feasible")
    vcpus = tuple(replace(it, cpus=CpuSet.of([assignment[it.id]])) for it in host.vcpus)
    changed = sum(new.cpus != old.cpus for new, old in zip(vcpus, host.vcpus, strict=True))
    left_ppm = gap_ppm(replace(host, vcpus=vcpus))
    if left_ppm >= policy.balance_threshold_ppm or changed != pins:
        raise SolverError(
            f"HiGHS says {pins} pins and balance; it is {changed} and a gap of {left_ppm} ppm"
        )


def _feasible(vcpu: Vcpu, online: CpuSet) -> CpuSet:
    if not vcpu.is_bound or not vcpu.cpus.is_within(online):
        raise ValueError(f"{vcpu.id} is not bound to one managed pCPU")
    return vcpu.cpus if vcpu.fixed else (vcpu.allowed & online) | vcpu.cpus


def _bound_levels(
    model: highspy.Highs,
    host: Host,
    choices: list[dict[int, highspy.highs.highs_var]],
    gap_max: int,
) -> None:
    """Keep the load of every pCPU within `gap_max` above a common level."""
    host_loads = {cpu.id: _units(cpu.host_load_ppm) for cpu in host.cpus}
    total = sum(host_loads.values()) + sum(_units(vcpu.load_ppm) for vcpu in host.vcpus)
    # The mean lies between the least and the most loaded: this bound spares much search.
    mean = total / len(host.cpus)
    low = model.addVariable(lb=max(0.0, mean - gap_max - HALF), ub=mean)
    for cpu, host_load in host_loads.items():
        load = model.qsum(
            choice[cpu] * _units(vcpu.load_ppm)
            for vcpu, choice in zip(host.vcpus, choices, strict=True)
            if cpu in choice
        )
        model.addConstr(load + host_load - low >= 0)
        model.addConstr(load + host_load - low <= gap_max + HALF)


@contextlib.contextmanager
def _without_banner() -> Iterator[None]:
    """Drop the solver's banner, which no option turns off."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  its descriptor is wanted
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _units(load_ppm: int) -> int:
    units, rest = divmod(load_ppm, UNIT_PPM)
    if rest:
        raise ValueError(f"a load of {load_ppm} ppm is no whole number of {UNIT_PPM} ppm")
    return units
