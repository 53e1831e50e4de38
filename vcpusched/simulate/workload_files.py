"""The only place where files become a workload: TOML written by hand, and recorded traces.

Rule: every mistake becomes a `WorkloadError` of one line: the file, where in it, the key, the
value, what is allowed. Files are recognised by their content, plain or compressed with gzip.
"""

import gzip
import random
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcpusched.model import (
    ALL_CPUS,
    NO_CPUS,
    PPM,
    PPM_PER_POINT,
    SHARES,
    Cpu,
    CpuSet,
    Topology,
)
from vcpusched.simulate import traces
from vcpusched.simulate.workload import (
    BURST_MS,
    CPUS_MAX,
    PERIODS_MAX,
    VCPUS_MAX,
    Guest,
    Refusal,
    Workload,
    WorkloadError,
    check_size,
)
from vcpusched.text import printable, shown

SIZE_MAX: Final = 256 << 20
"""Bytes of a workload file once unpacked: the PlanetLab trace has 4 MiB."""

_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_Period = Annotated[int, Field(ge=0, le=PERIODS_MAX)]


_Step = Annotated[tuple[_Period, _Percent], Field(strict=False)]  # TOML has no tuples


_Capacity = Annotated[tuple[str, _Percent], Field(strict=False)]


def _lists(sets: str) -> str:
    return f'a list of {sets} such as ["0-3", "4-7"] with pCPUs of this host, none in two of them'


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# The descriptions say what is allowed; they end the sentence "must be …".
class _GuestEntry(_Entry):
    name: str = Field(min_length=1, max_length=200, description="a text of 1 to 200 letters")
    load: _Percent | list[_Step] = Field(
        description="a number of percent from 0 to 100, or steps such as [[0, 20], [50, 80]]:"
        " from which period on, how many percent"
    )
    vcpus: int = Field(1, ge=1, le=1024, description="a whole number from 1 to 1024")
    count: int = Field(
        1, ge=1, le=VCPUS_MAX, description=f"a whole number from 1 to {VCPUS_MAX}: so many alike"
    )
    pin: str | None = Field(
        None, description='"float", or a list of pCPUs of this host such as "0" or "0-3"'
    )
    allowed: str | None = Field(
        None, description='a list of pCPUs of this host such as "0-3", with those of `pin` in it'
    )
    memory_nodes: str | None = Field(
        None, description='a list of `nodes` such as "0": its memory is strictly on these'
    )
    policy: Literal["balance", "hold", "spread"] | None = Field(
        None, description='one of "balance", "hold", "spread": what its metadata asks for'
    )
    shares: int = Field(
        SHARES, ge=2, le=262_144, description="a whole number from 2 to 262144, as libvirt has it"
    )
    start: int = Field(0, ge=0, le=PERIODS_MAX, description="a period of this run, from 0 on")
    end: int | None = Field(
        None, ge=1, le=PERIODS_MAX, description="a period after `start`, at most `periods`"
    )
    noise: float = Field(
        0, ge=0, le=100, allow_inf_nan=False, description="a number from 0 to 100, percent of load"
    )
    restarts: list[_Period] = Field(
        default=[], description="a list of periods between `start` and `end`"
    )
    refuses_pins: Literal["busy", "error"] | None = Field(
        None, description='one of "busy", "error"'
    )


class _File(_Entry):
    cpus: int = Field(ge=1, le=CPUS_MAX, description=f"a whole number from 1 to {CPUS_MAX}")
    periods: int = Field(
        100, ge=1, le=PERIODS_MAX, description=f"a whole number from 1 to {PERIODS_MAX}"
    )
    seed: int = Field(0, ge=0, le=1 << 53, description="a whole number from 0 on")
    burst_ms: int = Field(
        BURST_MS, ge=1, le=60_000, description="a whole number of milliseconds from 1 to 60000"
    )
    nodes: list[str] = Field(default=[], description=_lists("nodes"))
    caches: list[str] = Field(default=[], description=_lists("caches") + ", each within a node")
    cores: list[str] = Field(
        default=[], description=_lists("cores") + ", each within a cache and a node"
    )
    capacities: list[_Capacity] = Field(
        default=[],
        description='a list such as [["4-7", 60]]: which pCPUs do how many percent of the'
        " strongest, above 0 and up to 100, no pCPU twice, and one of 100 at least",
    )
    guest: list[_GuestEntry] = Field(
        min_length=1, description="at least one table [[guest]] with `name` and `load`"
    )


def read_toml(path: Path, *, periods: int | None = None, seed: int | None = None) -> Workload:
    """Read a workload written by hand; `periods` and `seed` outrank the file's own.

    Raises WorkloadError.
    """
    text = _text(path)
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # of tomllib, or of Python for a number of 5,000 digits
        hint = "; is it a trace? then give it with --trace" if traces.is_trace(text) else ""
        why = printable(str(error), 200)
        raise WorkloadError(f"{path}: not a TOML file: {why}{hint}") from None
    except RecursionError:
        raise WorkloadError(f"{path}: not a TOML file: nested too deeply") from None
    values |= {} if periods is None else {"periods": periods}
    values |= {} if seed is None else {"seed": seed}
    try:
        file = _File.model_validate(values)
    except ValidationError as error:
        raise WorkloadError(f"{path}: {_problem(values, error)}") from None
    try:
        return _workload(str(path), file)
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from None


def read_trace(
    path: Path, *, cpu_count: int, vcpu_count: int, periods: int | None = None, seed: int = 0
) -> Workload:
    """Choose guests with this many vCPUs in all from a trace; the same seed chooses the same.

    All start at the same place in the trace, drawn when it is longer than `periods` (by default
    as many as the trace has, at most 288). When the trace has too few guests they are taken
    again, from other places. A guest of several vCPUs splits its load unevenly, but always alike.
    Raises WorkloadError.
    """
    text = _text(path)
    try:
        rows = traces.rows(text)
        chosen = periods or min(len(rows[0].loads_ppm), traces.PLANETLAB_VALUES)
        check_size(vcpu_count, chosen)
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from None
    chance = random.Random(f"{seed}/trace")  # noqa: S311  chance that can be repeated
    order = list(range(len(rows)))
    chance.shuffle(order)
    shift, guests, left = chance.random(), list[Guest](), vcpu_count
    while left > 0:
        row = rows[order[len(guests) % len(order)]]
        if len(guests) >= len(order):
            shift = chance.random()
        guests.append(row.guest(f"vm{len(guests)}-{row.name}", left, chosen, shift, chance))
        left -= len(guests[-1].loads_ppm)
    return Workload(str(path), cpu_count, chosen, tuple(guests), seed)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.open(file) as unpacked:
                    content = unpacked.read(SIZE_MAX + 1)
            else:
                content = file.read(SIZE_MAX + 1)
        if len(content) > SIZE_MAX:
            raise WorkloadError(f"{path}: is larger than the {SIZE_MAX >> 20} MiB allowed")
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise WorkloadError(f"{path}: is neither text in UTF-8 nor gzip") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise WorkloadError(f"{path}: is damaged: cannot be unpacked as gzip") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from None


def _workload(source: str, file: _File) -> Workload:
    count = sum(entry.vcpus * entry.count for entry in file.guest)
    if count > VCPUS_MAX:
        raise WorkloadError(f"{count} vCPUs are not allowed: must be at most {VCPUS_MAX}")
    check_size(count, file.periods)
    guests: list[Guest] = []
    names: set[str] = set()
    for number, entry in enumerate(file.guest, 1):
        for copy in range(entry.count):
            name = entry.name if entry.count == 1 else f"{entry.name}-{copy + 1}"
            if name in names:
                raise _mistake(number, entry, "name", name, "another name than those before it")
            names.add(name)
            guests.append(_guest(number, entry, name, file))
    return Workload(
        source,
        file.cpus,
        file.periods,
        tuple(guests),
        file.seed,
        file.burst_ms,
        _topology(file),
    )


def _topology(file: _File) -> Topology | None:
    if not (file.nodes or file.caches or file.cores or file.capacities):
        return None
    nodes = _sets(file, "nodes", [])
    caches = _sets(file, "caches", [nodes])
    cores = _sets(file, "cores", [nodes, caches])
    capacities: dict[int, int] = {}
    for cpus, percent in file.capacities:
        for cpu in _list_of_cpus(cpus, file.cpus) or (-1,):
            if cpu < 0 or cpu in capacities or not percent:
                raise _file_mistake(file, "capacities")
            capacities[cpu] = max(1, round(percent * PPM_PER_POINT))
    found = Topology(
        tuple(
            # As libvirt's: nodes are counted, caches and cores go by their lowest pCPU.
            Cpu(
                cpu,
                nodes[cpu][0] if cpu in nodes else None,
                cores[cpu][1] if cpu in cores else None,
                caches[cpu][1] if cpu in caches else None,
                capacities.get(cpu, PPM),
            )
            for cpu in range(file.cpus)
        )
    )
    if all(cpu.capacity_ppm < PPM for cpu in found.cpus):
        raise _file_mistake(file, "capacities")
    return found


def _sets(
    file: _File, key: str, larger: Sequence[Mapping[int, tuple[int, int]]]
) -> dict[int, tuple[int, int]]:
    """Give, for each pCPU in a list of sets, the number of its set and the lowest pCPU in that.

    Each must lie within one of each of the `larger` sets, where its pCPUs are in any.
    """
    found: dict[int, tuple[int, int]] = {}
    for number, text in enumerate(getattr(file, key)):
        cpus = _list_of_cpus(text, file.cpus)
        across = any(len({around.get(cpu) for cpu in cpus}) > 1 for around in larger)
        if not cpus or across or any(cpu in found for cpu in cpus):
            raise _file_mistake(file, key)
        found |= dict.fromkeys(cpus, (number, next(iter(cpus))))
    return found


def _list_of_cpus(text: str, count: int) -> CpuSet:
    cpus = CpuSet.read(text)
    return cpus if cpus.is_within(CpuSet.of(range(count))) else NO_CPUS


def _file_mistake(file: _File, key: str) -> WorkloadError:
    must = _File.model_fields[key].description
    return WorkloadError(f"{key}: {shown(getattr(file, key))} is not allowed: must be {must}")


def _guest(number: int, entry: _GuestEntry, name: str, file: _File) -> Guest:
    end = file.periods if entry.end is None else entry.end
    if entry.start >= file.periods:
        raise _mistake(number, entry, "start", entry.start)
    if not entry.start < end <= file.periods:
        raise _mistake(number, entry, "end", end)
    if any(not entry.start < period < end for period in entry.restarts):
        raise _mistake(number, entry, "restarts", entry.restarts)
    online = CpuSet.of(range(file.cpus))
    allowed = _cpus(number, entry, "allowed", online) if entry.allowed is not None else ALL_CPUS
    pin = None
    if entry.pin == "float":
        pin = allowed & online
    elif entry.pin is not None:
        pin = _cpus(number, entry, "pin", online)
        if not pin.is_within(allowed):
            raise _mistake(number, entry, "allowed", entry.allowed)
    steps = entry.load if isinstance(entry.load, list) else [(entry.start, entry.load)]
    begins = [begin for begin, _ in steps]
    if not steps or begins[0] > entry.start or begins != sorted(set(begins)):
        what = "steps in rising order, the first no later than `start`"
        raise _mistake(number, entry, "load", entry.load, what)
    return Guest(
        name=name,
        loads_ppm=tuple(
            _loads(steps, range(entry.start, end), entry.noise, f"{file.seed}/{name}/{vcpu}")
            for vcpu in range(entry.vcpus)
        ),
        start=entry.start,
        shares=entry.shares,
        allowed=allowed,
        pin=pin,
        restarts=tuple(sorted(set(entry.restarts))),
        refuses=Refusal(entry.refuses_pins) if entry.refuses_pins is not None else None,
        memory_nodes=frozenset(_memory_nodes(number, entry, len(file.nodes))),
        policy=entry.policy,
    )


def _loads(
    steps: Sequence[tuple[int, float]], periods: range, noise: float, seed: str
) -> tuple[int, ...]:
    chance = random.Random(seed)  # noqa: S311  chance that can be repeated
    loads, step = [], 0
    for period in periods:
        while step + 1 < len(steps) and steps[step + 1][0] <= period:
            step += 1
        load = steps[step][1] * PPM_PER_POINT
        if noise:
            load *= 1 + noise / 100 * (2 * chance.random() - 1)
        loads.append(min(PPM, round(load)))
    return tuple(loads)


def _cpus(number: int, entry: _GuestEntry, key: str, online: CpuSet) -> CpuSet:
    text = str(getattr(entry, key))
    cpus = _list_of_cpus(text, len(online))
    if not cpus:
        raise _mistake(number, entry, key, text)
    return cpus


def _memory_nodes(number: int, entry: _GuestEntry, count: int) -> CpuSet:
    if entry.memory_nodes is None:
        return NO_CPUS
    # A list of nodes reads like a list of pCPUs.
    nodes = _list_of_cpus(entry.memory_nodes, count)
    if not nodes:
        raise _mistake(number, entry, "memory_nodes", entry.memory_nodes)
    return nodes


def _mistake(
    number: int, entry: _GuestEntry, key: str, value: object, allowed: str | None = None
) -> WorkloadError:
    must = allowed or _GuestEntry.model_fields[key].description
    return WorkloadError(
        f"guest {number} ({printable(entry.name)}): {key}: {shown(value)} is not allowed:"
        f" must be {must}"
    )


def _problem(values: Mapping[str, Any], error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = problem["loc"]
    model: type[_Entry] = _File
    where, value = "", problem["input"]
    if place[0] == "guest" and len(place) > 2:  # noqa: PLR2004  guest, which, key
        model, index = _GuestEntry, int(place[1])
        name = values["guest"][index].get("name", "")
        where = f"guest {index + 1} ({printable(str(name)) or 'unnamed'}): "
        value = values["guest"][index].get(place[2])
    key = str(place[2] if where else place[0])
    if problem["type"] == "extra_forbidden":
        return f"{where}{printable(key)}: no such key; there are {', '.join(model.model_fields)}"
    must = model.model_fields[key].description
    if problem["type"] == "missing":
        return f"{where}{key}: is missing: must be {must}"
    if not where and key in values and key != "guest":
        value = values[key]
    return f"{where}{key}: {shown(value)} is not allowed: must be {must}"
