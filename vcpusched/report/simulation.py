"""The results of a simulated run, as values and as JSON.

Rule: values only. Times are whole nanoseconds, shares parts per million.
"""

from dataclasses import dataclass
from typing import Any

from vcpusched.model import PPM, CpuSet


@dataclass(frozen=True, slots=True)
class PinChange:
    """A pin that was made at the end of a period; `back` when it undid one of the last few."""

    period: int
    domain: str
    vcpu: int
    from_cpus: CpuSet
    to_cpus: CpuSet
    back: bool


@dataclass(frozen=True, slots=True)
class PeriodResult:
    """What happened in one period; `planned` says whether a plan was carried out at its end."""

    gap_ppm: int
    planned: bool
    demanded_ns: int = 0
    run_ns: int = 0
    wait_ns: int = 0
    unmet_ns: int = 0


@dataclass(frozen=True, slots=True)
class VcpuResult:
    """What one vCPU wanted and got over its life, restarts included."""

    domain: str
    vcpu: int
    demanded_ns: int = 0
    run_ns: int = 0
    wait_ns: int = 0
    unmet_ns: int = 0

    @property
    def waiting_ppm(self) -> int:
        """Return the part that it waited of the time in which it had work."""
        return _share(self.wait_ns, self.run_ns + self.wait_ns)


@dataclass(frozen=True, slots=True)
class Result:
    """One run; so many pins were `refused`."""

    periods: tuple[PeriodResult, ...]
    vcpus: tuple[VcpuResult, ...]
    pins: tuple[PinChange, ...]
    refused: int

    @property
    def gap_ppm(self) -> int:
        """Return the mean gap between the busiest and the least loaded pCPU."""
        return sum(period.gap_ppm for period in self.periods) // max(1, len(self.periods))

    @property
    def unmet_ppm(self) -> int:
        """Return the part of all demand that was not met."""
        return self._of_demand(sum(period.unmet_ns for period in self.periods))

    @property
    def wait_ppm(self) -> int:
        """Return the time in which vCPUs had work and did not run, as a part of all demand."""
        return self._of_demand(sum(period.wait_ns for period in self.periods))

    @property
    def waiting_ppm(self) -> int:
        """Return the part that they waited of the time in which vCPUs had work."""
        wait_ns = sum(period.wait_ns for period in self.periods)
        return _share(wait_ns, wait_ns + sum(period.run_ns for period in self.periods))

    @property
    def plans(self) -> int:
        """Return how many plans were carried out."""
        return sum(period.planned for period in self.periods)

    @property
    def moved_back(self) -> int:
        """Return how many pins undid one of the last few periods."""
        return sum(pin.back for pin in self.pins)

    @property
    def worst(self) -> VcpuResult | None:
        """Return the vCPU that waited for the largest part of its time; None if none had work."""
        wanting = [vcpu for vcpu in self.vcpus if vcpu.demanded_ns]
        return max(wanting, key=lambda vcpu: vcpu.waiting_ppm, default=None)

    def _of_demand(self, time_ns: int) -> int:
        return _share(time_ns, sum(period.demanded_ns for period in self.periods))


def as_json(result: Result) -> dict[str, Any]:
    """Return a run as JSON: loads and gaps in pCPUs, shares of 1."""
    worst = result.worst
    return {
        "gap_mean": result.gap_ppm / PPM,
        "gap": [period.gap_ppm / PPM for period in result.periods],
        "demanded_s": round(sum(period.demanded_ns for period in result.periods) / 1e9, 3),
        "unmet": result.unmet_ppm / PPM,
        "wait": result.wait_ppm / PPM,
        "waiting": result.waiting_ppm / PPM,
        "worst": None
        if worst is None
        else {"domain": worst.domain, "vcpu": worst.vcpu, "waiting": worst.waiting_ppm / PPM},
        "plans": result.plans,
        "refused": result.refused,
        "moved_back": result.moved_back,
        "pins": [
            {
                "period": pin.period,
                "domain": pin.domain,
                "vcpu": pin.vcpu,
                "from": str(pin.from_cpus),
                "to": str(pin.to_cpus),
            }
            for pin in result.pins
        ],
    }


def _share(part: int, whole: int) -> int:
    return part * PPM // whole if whole else 0
