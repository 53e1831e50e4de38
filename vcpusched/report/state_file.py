"""The state file of the service, as the service writes it and as `status` and `top` read it.

Rule: text and values only. Loads are decimal pCPUs, times are seconds since the epoch.
"""

from collections import Counter
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from vcpusched.act.cycle import Cycle
from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Host
from vcpusched.report.messages import Service, gap_now_ppm, status_line
from vcpusched.report.snapshot import (
    JsonObject,
    Number,
    Snapshot,
    host_as_json,
    host_of,
    plan_as_json,
    validated,
)
from vcpusched.text import cpus_text

STATE_VERSION: Final = 1
WAIT_SHOWN_PPM: Final = PPM_PER_POINT // 2
"""Below this a wait rounds to 0% and is left out: nearly every vCPU of a large host has one."""

AGE_MAX_S: Final = 15.0

_Finite = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class SavedPin(JsonObject):
    """A pin that the service made."""

    at: float = Field(ge=0, le=1e11)
    domain: str
    vcpu: int
    from_cpus: str = Field(alias="from")
    to_cpus: str = Field(alias="to")
    uuid: str = ""
    reason: str = ""


class SavedWait(JsonObject):
    """A vCPU that waited, and the share of the last period for which it did."""

    uuid: str
    id: int
    vcpu: int
    wait: float = Field(ge=0, allow_inf_nan=False)


class SavedCpus(JsonObject):
    """pCPUs that are not managed, and why."""

    cpus: str
    why: str

    @property
    def text(self) -> str:
        """Return both as a sentence."""
        cpus = CpuSet.read(self.cpus)
        return f"{cpus_text(cpus)} {'is' if len(cpus) == 1 else 'are'} not managed: {self.why}"


class SavedState(JsonObject):
    """What the service last wrote of itself."""

    version: Literal[1]
    pid: int
    started_at: float = Field(ge=0, le=1e11)
    at: float = Field(ge=0, le=1e11)
    uri: str
    period: float
    connected: bool
    cycle: int
    status: str
    untold: str = ""
    trouble: str | None
    pins_failing: list[str]
    last_pins: list[SavedPin]
    loads: dict[Number, _Finite]
    gap: _Finite | None = None
    balance_threshold: _Finite = 0.0
    dry_run: bool = False
    pins: int = 0
    pins_last_hour: int = 0
    pins_last_day: int = 0
    waits: list[SavedWait] = Field(default_factory=list)
    left_alone: list[SavedCpus] = Field(default_factory=list)
    pin_to: Literal["auto", "cpu", "core", "cache", "node"] = "cpu"
    snapshot: Snapshot | None = None

    @property
    def age_max_s(self) -> float:
        """How old a state can be while the service does not hang."""
        return max(3 * self.period, AGE_MAX_S)

    def is_healthy(self, age_s: float) -> bool:
        """Return whether the host is read, no pin fails, and the service does not hang."""
        fine = self.connected and self.trouble is None and not self.pins_failing
        return fine and age_s <= self.age_max_s


def parse_state(text: str) -> SavedState:
    """Read a state file. Raises SnapshotError."""
    return validated(SavedState, text, "state")


def saved_host(state: SavedState) -> Host | None:
    """Return the host in a state file, None before the first loads. Raises SnapshotError."""
    return None if state.snapshot is None else host_of(state.snapshot)


def state_as_json(service: Service, at_s: float) -> dict[str, Any]:
    """Return the state file, version 1."""
    cycle = service.cycle or Cycle(0, 0)
    plan, settings = cycle.plan, service.settings
    return {
        "version": STATE_VERSION,
        "pid": service.pid,
        "started_at": service.started_at_s,
        "at": at_s,
        "uri": settings.uri,
        "period": settings.period,
        "balance_threshold": settings.balance_threshold,
        "dry_run": settings.dry_run,
        "paused": service.paused is not None,
        "paused_until": service.paused.until_s if service.paused is not None else None,
        "connected": service.connected,
        "trouble": service.trouble,
        "pin_to": settings.pin_to,
        "status": status_line(service),
        "untold": service.unreported,
        "pins": service.pins,
        "pins_last_hour": service.pins_last_hour,
        "pins_last_day": service.pins_last_day,
        "pins_failing": list(service.pins_failing),
        "last_pins": [
            {
                "at": pin.at_s,
                "domain": pin.move.domain,
                "uuid": pin.move.vcpu.uuid,
                "vcpu": pin.move.vcpu.vcpu,
                "from": str(pin.move.from_cpus),
                "to": str(pin.move.to_cpus),
                "reason": pin.move.reason,
            }
            for pin in service.last_pins
        ],
        "cycle": cycle.number,
        "domains": cycle.domains,
        "gap": gap_now_ppm(cycle, plan) / PPM if plan else None,
        "waits": [
            {"uuid": vcpu.uuid, "id": vcpu.domain_id, "vcpu": vcpu.vcpu, "wait": wait_ppm / PPM}
            for vcpu, wait_ppm in cycle.waits.items()
            if wait_ppm >= WAIT_SHOWN_PPM
        ],
        "left_alone": [{"cpus": str(cpus), "why": why} for why, cpus in cycle.left_alone.items()],
        "loads": {str(cpu): ppm / PPM for cpu, ppm in plan.loads_before_ppm} if plan else {},
        "plan": plan_as_json(plan) if plan else None,
        "snapshot": host_as_json(cycle.host) if cycle.host else None,
    }


class Recent:
    """How many pins there were in the last hour and day; the caller has the clock."""

    def __init__(self) -> None:
        self._by_minute: Counter[int] = Counter()

    def add(self, now_s: float) -> None:
        """Count one pin, now."""
        self._by_minute[int(now_s // 60)] += 1

    def counts(self, now_s: float) -> tuple[int, int]:
        """Return the pins of the last hour and of the last day, and forget what is older."""
        minute = int(now_s // 60)
        for old in [key for key in self._by_minute if key <= minute - 24 * 60]:
            del self._by_minute[old]
        hour = sum(n for key, n in self._by_minute.items() if key > minute - 60)
        return hour, self._by_minute.total()
