"""The host and the plan as JSON, version 1.

Rule: text and values only. Loads are decimal pCPUs in the JSON and integers inside; keys that this
version does not know are ignored, so that the format can grow.
"""

import re
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcpusched.model import (
    CPU_ID_MAX,
    DISTANCE_MAX,
    PPM,
    SHARES,
    Cpu,
    CpuSet,
    DomainUuid,
    Host,
    HostCpu,
    Vcpu,
    VcpuId,
)
from vcpusched.plan.planner import Plan
from vcpusched.text import place, shown

VERSION: Final = 1

LOAD_MAX: Final = 2.0
"""In pCPUs. A vCPU cannot use more than one; more than this is percent by mistake."""

PLACE: Final = ("node", "core", "cache", "socket")
AS_IT_IS: Final = {"domain", "on", "fixed", "why", "memory_node", "shares", "spread"}
"""What pCPUs and vCPUs have in JSON by the same name, and as the same number or text."""

_CpuId = Annotated[int, Field(ge=0, le=CPU_ID_MAX)]
_Capacity = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
_Load = Annotated[float, Field(ge=0, le=LOAD_MAX, allow_inf_nan=False)]
Number = Annotated[str, Field(pattern="^[0-9]{1,5}$")]
_Distance = Annotated[int, Field(ge=1, le=DISTANCE_MAX)]


class SnapshotError(ValueError):
    """A snapshot cannot be used; the text says where in it and why, on one line."""


class JsonObject(BaseModel):
    """An object in JSON, of which keys that are not known are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, defer_build=True)


_Model = TypeVar("_Model", bound=JsonObject)


class _CpuEntry(JsonObject):
    id: _CpuId
    node: int | None = None
    core: int | None = None
    cache: int | None = None
    capacity: _Capacity = 1.0
    isolated: bool = False
    socket: int | None = None
    host_load: _Load = 0.0
    unsettled: bool = False


class _VcpuEntry(JsonObject):
    domain: str = Field(min_length=1)
    vcpu: int = Field(ge=0, le=CPU_ID_MAX)
    load: _Load
    cpus: str
    allowed: str | None = None
    on: _CpuId | None = None
    fixed: bool = False
    why: str = ""
    uuid: str | None = None
    id: int = 0
    memory_node: int | None = None
    shares: int = Field(SHARES, ge=1, le=1 << 20)
    quota: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    spread: bool = False
    wait: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)


class Snapshot(JsonObject):
    """A host, as it is saved."""

    version: Literal[1]
    cpus: list[_CpuEntry]
    vcpus: list[_VcpuEntry]
    node_distances: dict[Number, dict[Number, _Distance]] = Field(default_factory=dict)


def parse(text: str) -> Host:
    """Read a snapshot of one pCPU or more. Raises SnapshotError."""
    host = host_of(validated(Snapshot, text, "snapshot"))
    if not host.cpus:
        raise SnapshotError("cpus: must not be empty")
    return host


_COMPLAINTS: Final = {
    "model_type": "must be an object in braces",
    "dict_type": "must be an object in braces",
    "list_type": "must be a list",
    "literal_error": "{value} is not allowed: must be {expected}",
    "string_too_short": "must not be empty",
    "missing": "is missing",
    "string_pattern_mismatch": "must be a number of up to 5 digits",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "less_than_equal": "{value} is not allowed: must be at most {le:g}",
    "greater_than_equal": "{value} is not allowed: must be at least {ge:g}",
    "greater_than": "{value} is not allowed: must be above {gt:g}",
}
"""What the library would say in its own terms."""


def validated(model: type[_Model], text: str, kind: str) -> _Model:
    """Read JSON. Raises SnapshotError."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise SnapshotError(f"not JSON: {first['ctx']['error']}") from None
        what = first["msg"].lower()
        if first["type"] in _COMPLAINTS:
            context = first.get("ctx", {})
            what = _COMPLAINTS[first["type"]].format(value=shown(first["input"], 40), **context)
        if first["loc"] == ("version",):
            what += ", the version that this vcpusched reads"
        if first["loc"][-1:] in {("load",), ("host_load",)}:
            what += " (in pCPUs: 0.53 is 53% of one)"
        raise SnapshotError(f"{place(first, kind)}: {what}") from None


def host_of(snapshot: Snapshot) -> Host:
    """Return the host that was saved. Raises SnapshotError."""
    cpus = [
        HostCpu(
            Cpu(
                capacity_ppm=max(_ppm(entry.capacity), 1),  # what rounds to nothing is above it
                **entry.model_dump(include={"id", "isolated", *PLACE}),
            ),
            _ppm(entry.host_load),
        )
        for entry in snapshot.cpus
    ]
    online = CpuSet.of(cpu.id for cpu in cpus)
    if len(online) != len(cpus):
        raise SnapshotError("cpus: a pCPU is listed twice")
    vcpus = [_vcpu(entry, f"vcpus.{index}", online) for index, entry in enumerate(snapshot.vcpus)]
    if len({vcpu.id for vcpu in vcpus}) != len(vcpus):
        raise SnapshotError("vcpus: a vCPU is listed twice")
    return Host(
        cpus=tuple(sorted(cpus, key=lambda cpu: cpu.id)),
        vcpus=tuple(sorted(vcpus, key=lambda vcpu: vcpu.id)),
        unsettled=CpuSet.of(entry.id for entry in snapshot.cpus if entry.unsettled),
        node_distances={
            (int(node), int(other)): distance
            for node, others in snapshot.node_distances.items()
            for other, distance in others.items()
        },
    )


def _vcpu(entry: _VcpuEntry, where: str, online: CpuSet) -> Vcpu:
    def parsed(key: str, text: str) -> CpuSet:
        try:
            return CpuSet.parse(text)
        except ValueError as error:
            raise SnapshotError(f"{where}.{key}: {error}") from None

    cpus = parsed("cpus", entry.cpus)
    allowed = online if entry.allowed is None else parsed("allowed", entry.allowed)
    if not cpus:
        raise SnapshotError(f"{where}.cpus: must name at least one pCPU")
    return Vcpu(
        # Without a UUID the name identifies a domain, as it does for libvirt.
        id=VcpuId(DomainUuid(entry.uuid or entry.domain), entry.id, entry.vcpu),
        load_ppm=_ppm(entry.load),
        cpus=cpus,
        allowed=allowed,
        quota_ppm=_ppm(entry.quota),
        wait_ppm=_ppm(entry.wait),
        **entry.model_dump(include=AS_IT_IS),
    )


def host_as_json(host: Host) -> dict[str, Any]:
    """Return a host as JSON, version 1."""
    distances: dict[str, dict[str, int]] = {}
    for (node, other), distance in host.node_distances.items():
        distances.setdefault(str(node), {})[str(other)] = distance
    return {
        "version": VERSION,
        "cpus": [
            {
                "id": cpu.id,
                **{key: at for key in PLACE if (at := getattr(cpu.cpu, key)) is not None},
                **({"capacity": cpu.cpu.capacity_ppm / PPM} if cpu.cpu.capacity_ppm < PPM else {}),
                **({"isolated": True} if cpu.cpu.isolated else {}),
                "host_load": cpu.host_load_ppm / PPM,
                **({"unsettled": True} if cpu.id in host.unsettled else {}),
            }
            for cpu in host.cpus
        ],
        "vcpus": [
            {
                "domain": vcpu.domain,
                "uuid": vcpu.id.uuid,
                "id": vcpu.id.domain_id,
                "vcpu": vcpu.id.vcpu,
                "load": vcpu.load_ppm / PPM,
                "cpus": str(vcpu.cpus),
                "allowed": str(vcpu.allowed),
                **({} if vcpu.is_bound or vcpu.on is None else {"on": vcpu.on}),
                **({"fixed": True} if vcpu.fixed else {}),
                **({"why": vcpu.why} if vcpu.why else {}),
                **({} if vcpu.memory_node is None else {"memory_node": vcpu.memory_node}),
                **({} if vcpu.shares == SHARES else {"shares": vcpu.shares}),
                **({} if vcpu.quota_ppm == PPM else {"quota": vcpu.quota_ppm / PPM}),
                **({"spread": True} if vcpu.spread else {}),
                **({"wait": vcpu.wait_ppm / PPM} if vcpu.wait_ppm else {}),
            }
            for vcpu in host.vcpus
        ],
        **({"node_distances": distances} if distances else {}),
    }


def anonymized(host: Host) -> Host:
    """Return a host with names and UUIDs replaced; the same plans are made of it.

    What reasons quote is left out, too, since a glob or metadata may have half of a name.
    """
    uuids = sorted({vcpu.id.uuid for vcpu in host.vcpus})
    # In the same order, since that decides between equals.
    new = {uuid: DomainUuid(str(UUID(int=number))) for number, uuid in enumerate(uuids, 1)}
    names = {vcpu.domain: f"guest{uuids.index(vcpu.id.uuid) + 1}" for vcpu in host.vcpus}
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    named = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)")

    def masked(why: str) -> str:
        kept = re.sub(r'"[^"]*"', lambda q: q[0] if q[0].startswith('"vcpusched ') else '"…"', why)
        return named.sub(lambda found: names[found[0]], kept)

    vcpus = (
        replace(
            vcpu,
            id=vcpu.id._replace(uuid=new[vcpu.id.uuid]),
            domain=names[vcpu.domain],
            why=masked(vcpu.why),
        )
        for vcpu in host.vcpus
    )
    return replace(host, vcpus=tuple(vcpus))


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON, version 1."""
    return {
        "version": VERSION,
        "balanced": plan.balanced,
        "stop": plan.stop.value,
        "gap_before": plan.gap_before_ppm / PPM,
        "gap_after": plan.gap_after_ppm / PPM,
        **({"refused": plan.refused} if plan.refused else {}),
        "moves": [
            {
                "domain": move.domain,
                "vcpu": move.vcpu.vcpu,
                "from": str(move.from_cpus),
                "to": str(move.to_cpus),
                "load": move.load_ppm / PPM,
                "reason": move.reason,
            }
            for move in plan.moves
        ],
    }


def _ppm(load: float) -> int:
    return round(load * PPM)
