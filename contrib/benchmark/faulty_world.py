"""Guests in memory for any commit of the package, and everything that goes wrong around them.

Rule: seeded and exactly repeatable. It is a `Hypervisor` of the commit that runs on it.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from drawn import PPM, cpu_set, draw_cpus, likely, of

PERIOD_NS: Final = 3_000_000_000


class Killed(BaseException):
    """The service is killed here."""


class Memory:
    """A ledger file in memory, which cannot be written now and then."""

    def __init__(self, fails: Callable[[str, int], bool]) -> None:
        self._fails = fails
        self._text: str | None = None

    def read(self) -> str | None:
        """Return the text."""
        return self._text

    def replace(self, text: str) -> None:
        """Replace the text, or fail."""
        if self._fails("full", 10):
            raise OSError(28, "No space left on device")
        self._text = text

    def set_aside(self) -> str:
        """Fail: what is written here can be read."""
        raise OSError(1, "nothing is set aside here")


class World:
    """Guests in memory that wait where they are crowded, and everything that goes wrong."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"world/{seed}")  # noqa: S311  repeatable
        self.cpus = draw_cpus(self.chance, self.chance.choice([4, 6, 8]))
        self.online = [cpu.id for cpu in self.cpus]
        self.guests: dict[str, dict[str, Any]] = {}
        self.told: list[object] = []
        self.now_ns, self._last_id = PERIOD_NS, 0
        self._busy_ns = dict.fromkeys(self.online, 0)
        for _ in range(len(self.cpus)):
            self._start(f"{self._last_id:032x}")

    def happens(self, _what: str, per_thousand: float) -> bool:
        """Draw whether something goes wrong now."""
        return likely(self.chance, per_thousand / 1000)

    def fail(self, per_thousand: float, error: str, text: str) -> None:
        """Raise an error of the hypervisor now and then."""
        if self.happens(text, per_thousand):
            raise of("hypervisor", error)(text)

    def sample(self, crowded: Any = None) -> Any:  # noqa: ANN401  the side's CpuSet and Sample
        """Read the host, for a `Hypervisor`; earlier sides ask for the wait on some pCPUs only."""
        self.fail(4, "ConnectionLostError", "libvirt is away")
        self.fail(4, "HypervisorError", "libvirt does not answer")
        unread = {
            uuid: of("model", "Unread")(guest["name"], "does not answer")
            for uuid, guest in self.guests.items()
            if self.happens("unread", 3)
        }
        domains = [
            self._reading(uuid, guest, crowded)
            for uuid, guest in self.guests.items()
            if uuid not in unread
        ]
        return of("model", "Sample")(
            of("model", "Topology")(tuple(self.cpus)),
            tuple(domains),
            unread=unread,
            busy=of("model", "Busy")(self.now_ns, dict(self._busy_ns)),
        )

    def definition(self, uuid: str) -> Any:  # noqa: ANN401  the side's Definition
        """Read a definition."""
        self.fail(3, "HypervisorError", "the definition cannot be read")
        return self._definition(self._guest(uuid))

    def affinity(self, vcpu: Any) -> Any:  # noqa: ANN401  the side's VcpuId and CpuSet
        """Read an affinity."""
        return self._guest(vcpu.uuid)["vcpus"][vcpu.vcpu]["affinity"]

    def mark(self, uuid: str, _domain_id: int, origin: Mapping[int, Any]) -> None:
        """Write a mark."""
        guest = self._guest(uuid)
        self.fail(10, "BusyError", "the guest takes no mark")
        guest["origin"] = dict(origin)

    def pin(self, vcpu: Any, cpus: Any) -> None:  # noqa: ANN401  the side's VcpuId and CpuSet
        """Set an affinity."""
        one = self._guest(vcpu.uuid)["vcpus"][vcpu.vcpu]
        if self.happens("killed", 5):
            raise Killed
        self.fail(30, "BusyError", "the guest is busy")
        self.fail(10, "HypervisorError", "the pin was refused")
        self.fail(6, "ConnectionLostError", "libvirt went away before the pin")
        self.told.append(["set", vcpu.uuid, vcpu.vcpu, str(one["affinity"]), str(cpus)])
        one["affinity"] = one["booked"] = cpus
        self.fail(6, "ConnectionLostError", "libvirt went away after the pin")

    def pass_time(self) -> None:
        """Let a period pass: what is wanted beyond a pCPU's time is waited for."""
        self.now_ns += PERIOD_NS
        placed: dict[int, list[dict[str, Any]]] = {cpu: [] for cpu in self.online}
        every = [vcpu for guest in self.guests.values() for vcpu in guest["vcpus"]]
        for vcpu in sorted(every, key=lambda vcpu: len(vcpu["affinity"])):
            free = {cpu: sum(one["want"] for one in placed[cpu]) for cpu in vcpu["affinity"]}
            vcpu["on"] = min(free, key=lambda cpu: (free[cpu], cpu))
            placed[vcpu["on"]].append(vcpu)
        for cpu, there in placed.items():
            total = sum(vcpu["want"] for vcpu in there)
            for vcpu in there:
                ran_ns = PERIOD_NS * vcpu["want"] // max(total, PPM)
                vcpu["run_ns"] += ran_ns
                vcpu["wait_ns"] += PERIOD_NS * vcpu["want"] // PPM - ran_ns
            self._busy_ns[cpu] += PERIOD_NS * min(total, PPM) // PPM
        for vcpu in every:
            if likely(self.chance, 0.03):
                vcpu["want"] = self._want()

    def meddle(self) -> None:
        """Have guests come, go and start anew, others pin, and the kernel undo pins."""
        if len(self.guests) < 3 * len(self.cpus) and self.happens("start", 60):
            self._start(f"{self._last_id:032x}")
        uuid = self.chance.choice(sorted(self.guests))
        if self.happens("end", 20) and len(self.guests) > 1:
            del self.guests[uuid]
        elif self.happens("restart", 10):
            self._start(uuid)
        elif self.happens("new ids", 5):
            for guest in self.guests.values():
                self._last_id += 1
                guest["id"] = self._last_id
        else:
            vcpu = self.chance.choice(self.guests[uuid]["vcpus"])
            if self.happens("another's pin", 20):
                vcpu["affinity"] = vcpu["booked"] = cpu_set([self.chance.choice(self.online)])
            elif self.happens("another's pool", 10):
                vcpu["affinity"] = vcpu["booked"] = cpu_set(self.online[: len(self.online) // 2])
            elif self.happens("a reset", 20):
                vcpu["affinity"] = cpu_set(self.online)

    def _start(self, uuid: str) -> None:
        self._last_id += 1
        whole, vcpus = cpu_set(self.online), []
        allowed = self.chance.choice([whole, whole, cpu_set(self.online[: len(self.online) // 2])])
        for _ in range(self.chance.choice([1, 1, 2, 4])):
            first = cpu_set([self.chance.choice(list(allowed)[:3])])
            cpus = self.chance.choice([first, first, allowed])
            counters = {"run_ns": 0, "wait_ns": 0, "on": None, "want": self._want()}
            vcpus.append({"allowed": allowed, "affinity": cpus, "booked": cpus, **counters})
        name = f"guest{self._last_id}"
        self.guests[uuid] = {"name": name, "id": self._last_id, "vcpus": vcpus, "origin": {}}

    def _want(self) -> int:
        return self.chance.choice([20_000, 100_000, 300_000, 600_000, 1_000_000])

    def _guest(self, uuid: str) -> dict[str, Any]:
        if uuid not in self.guests:
            raise of("hypervisor", "VanishedError")("the guest has ended")
        return self.guests[uuid]

    def _definition(self, guest: Mapping[str, Any]) -> Any:  # noqa: ANN401  the side's Definition
        vcpus = dict(enumerate(guest["vcpus"]))
        return of("model", "Definition")(
            {number: vcpu["allowed"] for number, vcpu in vcpus.items()},
            booked={number: vcpu["booked"] for number, vcpu in vcpus.items()},
            origin=dict(guest["origin"]),
        )

    def _reading(self, uuid: str, guest: Mapping[str, Any], crowded: Any) -> Any:  # noqa: ANN401  theirs
        vcpus = [
            of("model", "VcpuReading")(
                number,
                vcpu["run_ns"],
                vcpu["affinity"],
                vcpu["on"],
                of("model", "Waited")(self.now_ns, vcpu["wait_ns"])
                if crowded is None or vcpu["affinity"].is_within(crowded)
                else None,
            )
            for number, vcpu in enumerate(guest["vcpus"])
        ]
        return of("model", "DomainReading")(
            uuid,
            guest["id"],
            guest["name"],
            self.now_ns,
            1000,
            tuple(vcpus),
            self._definition(guest),
        )
