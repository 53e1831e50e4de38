"""The only place where files become a workload: TOML written by hand, and recorded traces.

Rule: every mistake becomes a `WorkloadError` of one line: the file, where in it, the key, the
value, what is allowed. Files are recognised by their content, plain or compressed with gzip.
"""

import bisect
import contextlib
import gzip
import random
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
    PinAnswer,
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


# What each key must be is said in its description, which ends the sentence "must be …".
def _whole(default: Any, least: int, most: int, more: str = "") -> Any:  # noqa: ANN401  as Field
    words = f"a whole number from {least} to {most}{more}"
    return Field(default, ge=least, le=most, description=words)


def _sets_of(what: str, within: str = "") -> Any:  # noqa: ANN401  as Field
    words = f'a list of {what} such as ["0-3", "4-7"] with pCPUs of this host, none in two of them'
    return Field([], description=words + within)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _GuestTable(_Table):
    name: str = Field(min_length=1, max_length=200, description="a text of 1 to 200 letters")
    load: _Percent | list[_Step] = Field(
        description="a number of percent from 0 to 100, or steps such as [[0, 20], [50, 80]]:"
        " from which period on, how many percent"
    )
    vcpus: int = _whole(1, 1, 1024)
    count: int = _whole(1, 1, VCPUS_MAX, ": so many alike")
    pin: str | None = Field(
        None, description='"float", or a list of pCPUs of this host such as "0" or "0-3"'
    )
    allowed: str | None = Field(
        None, description='a list of pCPUs of this host such as "0-3", with those of `pin` in it'
    )
    memory_nodes: str | None = Field(
        None,
        description='a list of `nodes`, as text such as "0-1": its memory is strictly on these',
    )
    policy: Literal["balance", "hold", "spread"] | None = Field(
        None, description='one of "balance", "hold", "spread": what its metadata asks for'
    )
    shares: int = _whole(SHARES, 2, 262_144, ", as libvirt has it")
    start: int = Field(0, ge=0, le=PERIODS_MAX, description="a period of this run, from 0 on")
    end: int | None = Field(
        None, ge=1, le=PERIODS_MAX, description="a period after `start`, at most `periods`"
    )
    noise: _Percent = Field(0, description="a number from 0 to 100, percent of load")
    restarts: list[_Period] = Field([], description="a list of periods between `start` and `end`")
    refuses_pins: PinAnswer | None = Field(None, strict=False, description='one of "busy", "error"')


class _File(_Table):
    cpus: int = _whole(..., 1, CPUS_MAX)
    periods: int = _whole(100, 1, PERIODS_MAX)
    seed: int = Field(0, ge=0, le=1 << 53, description="a whole number from 0 on")
    burst_ms: int = Field(
        BURST_MS, ge=1, le=60_000, description="a whole number of milliseconds from 1 to 60000"
    )
    nodes: list[str] = _sets_of("nodes")
    caches: list[str] = _sets_of("caches", ", each within a node")
    cores: list[str] = _sets_of("cores", ", each within a cache and a node")
    capacities: list[_Capacity] = Field(
        [],
        description='a list such as [["4-7", 60]]: which pCPUs do how many percent of the'
        " strongest, above 0 and up to 100, no pCPU twice, and one of 100 at least",
    )
    guest: list[_GuestTable] = Field(
        min_length=1, description="at least one table [[guest]] with `name` and `load`"
    )


def read_toml(path: Path, *, periods: int | None = None, seed: int | None = None) -> Workload:
    """Read a workload written by hand; `periods` and `seed` outrank the file's own.

    Raises WorkloadError.
    """
    with _located(path):
        text = _text(path)
        try:
            values = tomllib.loads(text)
        except ValueError as error:  # of tomllib, or of Python for a number of 5,000 digits
            hint = "; is it a trace? then give it with --trace" if traces.is_trace(text) else ""
            why = printable(str(error), 200)
            raise WorkloadError(f"not a TOML file: {why}{hint}") from None
        except RecursionError:
            raise WorkloadError("not a TOML file: nested too deeply") from None
        values |= {} if periods is None else {"periods": periods}
        values |= {} if seed is None else {"seed": seed}
        try:
            file = _File.model_validate(values)
        except ValidationError as error:
            raise WorkloadError(_problem(values, error)) from None
        return _workload(str(path), file)


def read_trace(
    path: Path, *, cpu_count: int, vcpu_count: int, periods: int | None = None, seed: int = 0
) -> Workload:
    """Choose guests with this many vCPUs in all from a trace; the same seed chooses the same.

    All start at the same place in the trace, drawn when it is longer than `periods` (by default
    as many as the trace has, at most 288). When the trace has too few guests they are taken
    again, from other places. A guest of several vCPUs splits its load unevenly, but always alike.
    Raises WorkloadError.
    """
    with _located(path):
        rows = traces.rows(_text(path))
        chosen = periods or min(len(rows[0].loads_ppm), traces.PLANETLAB_VALUES)
        check_size(vcpu_count, chosen)
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


@contextlib.contextmanager
def _located(where: object) -> Iterator[None]:
    """Put where a mistake is before its text."""
    try:
        yield
    except WorkloadError as error:
        raise WorkloadError(f"{where}: {error}") from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"  # a pipe cannot go back
            with gzip.open(file) if packed else file as unpacked:
                content = unpacked.read(SIZE_MAX + 1)
        if len(content) > SIZE_MAX:
            raise WorkloadError(f"is larger than the {SIZE_MAX >> 20} MiB allowed")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise WorkloadError("is neither text in UTF-8 nor gzip") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise WorkloadError("is damaged: cannot be unpacked as gzip") from None
    except OSError as error:
        raise WorkloadError(f"cannot be read: {error.strerror}") from None


def _workload(source: str, file: _File) -> Workload:
    count = sum(table.vcpus * table.count for table in file.guest)
    if count > VCPUS_MAX:
        raise WorkloadError(f"{count} vCPUs are not allowed: must be at most {VCPUS_MAX}")
    check_size(count, file.periods)
    guests: dict[str, Guest] = {}
    for index, table in enumerate(file.guest):
        with _located(_guest_text(index, table.name)):
            for copy in range(table.count):
                name = table.name if table.count == 1 else f"{table.name}-{copy + 1}"
                if name in guests:
                    must = "another name than those before it"
                    raise WorkloadError(_not_allowed(_GuestTable, "name", name, must))
                guests[name] = _guest(table, name, file)
    found, machine = tuple(guests.values()), _topology(file)
    return Workload(source, file.cpus, file.periods, found, file.seed, file.burst_ms, machine)


def _topology(file: _File) -> Topology:
    nodes = _sets(file, "nodes")
    caches = _sets(file, "caches", nodes)
    cores = _sets(file, "cores", nodes, caches)
    capacities: dict[int, int] = {}
    for text, percent in file.capacities:
        cpus = _cpus(text, file.cpus)
        if not cpus or not percent or any(cpu in capacities for cpu in cpus):
            raise _mistake(file, "capacities")
        capacities |= dict.fromkeys(cpus, max(1, round(percent * PPM_PER_POINT)))
    if capacities and all(capacities.get(cpu, PPM) < PPM for cpu in range(file.cpus)):
        raise _mistake(file, "capacities")
    return Topology(
        tuple(
            Cpu(cpu, nodes.get(cpu), cores.get(cpu), caches.get(cpu), capacities.get(cpu, PPM))
            for cpu in range(file.cpus)
        )
    )


def _sets(file: _File, key: str, *larger: Mapping[int, int]) -> dict[int, int]:
    """Return, for each pCPU in a list of sets, the number of its set.

    As libvirt has it: nodes are counted, caches and cores go by their lowest pCPU. Each set must
    lie within one of each of the `larger` ones, where its pCPUs are in any.
    """
    found: dict[int, int] = {}
    for number, text in enumerate(getattr(file, key)):
        cpus = _cpus(text, file.cpus)
        across = any(len({around.get(cpu) for cpu in cpus}) > 1 for around in larger)
        if not cpus or across or any(cpu in found for cpu in cpus):
            raise _mistake(file, key)
        found |= dict.fromkeys(cpus, number if key == "nodes" else next(iter(cpus)))
    return found


def _cpus(text: str, count: int) -> CpuSet:
    """Read a list of pCPUs, or of nodes, below `count`; none where it is anything else."""
    cpus = CpuSet.read(text)
    return cpus if cpus.is_within(CpuSet.of(range(count))) else NO_CPUS


def _guest(table: _GuestTable, name: str, file: _File) -> Guest:
    def listed(key: str, count: int) -> CpuSet:
        text = getattr(table, key)
        cpus = _cpus(text or "", count)
        if text is not None and not cpus:
            raise _mistake(table, key)
        return cpus

    end = file.periods if table.end is None else table.end
    if table.start >= file.periods:
        raise _mistake(table, "start")
    if not table.start < end <= file.periods:
        raise _mistake(table, "end")
    if any(not table.start < period < end for period in table.restarts):
        raise _mistake(table, "restarts")
    allowed = listed("allowed", file.cpus) or ALL_CPUS
    floats = table.pin == "float"
    pin = allowed & CpuSet.of(range(file.cpus)) if floats else listed("pin", file.cpus)
    if not pin.is_within(allowed):
        raise _mistake(table, "allowed")
    steps = table.load if isinstance(table.load, list) else [(table.start, table.load)]
    begins = [begin for begin, _ in steps]
    if not steps or begins[0] > table.start or begins != sorted(set(begins)):
        raise _mistake(table, "load", "steps in rising order, the first no later than `start`")
    return Guest(
        name=name,
        loads_ppm=tuple(
            _loads(steps, range(table.start, end), table.noise, f"{file.seed}/{name}/{vcpu}")
            for vcpu in range(table.vcpus)
        ),
        start=table.start,
        shares=table.shares,
        allowed=allowed,
        pin=pin or None,
        restarts=tuple(sorted(set(table.restarts))),
        refuses=table.refuses_pins,
        memory_nodes=frozenset(listed("memory_nodes", len(file.nodes))),
        policy=table.policy,
    )


def _loads(
    steps: Sequence[tuple[int, float]], periods: range, noise: float, seed: str
) -> tuple[int, ...]:
    chance = random.Random(seed)  # noqa: S311  chance that can be repeated
    loads, begins = [], [begin for begin, _ in steps]
    for period in periods:
        load = steps[bisect.bisect(begins, period) - 1][1] * PPM_PER_POINT
        swing = 1 + noise / 100 * (2 * chance.random() - 1)
        loads.append(min(PPM, round(load * swing)))
    return tuple(loads)


def _guest_text(index: int, name: object) -> str:
    return f"guest {index + 1} ({printable(str(name)) or 'unnamed'})"


def _mistake(table: _Table, key: str, must: str | None = None) -> WorkloadError:
    return WorkloadError(_not_allowed(type(table), key, getattr(table, key), must))


def _not_allowed(model: type[_Table], key: str, value: object, must: str | None = None) -> str:
    must = must or model.model_fields[key].description
    return f"{key}: {shown(value)} is not allowed: must be {must}"


def _problem(values: Mapping[str, Any], error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place, where = problem["loc"], ""
    model: type[_Table] = _File
    if place[0] == "guest" and len(place) > 2:  # noqa: PLR2004  guest, which, key
        values, place, model = values["guest"][place[1]], place[2:], _GuestTable
        where = _guest_text(int(problem["loc"][1]), values.get("name", "")) + ": "
    key = str(place[0])
    if problem["type"] == "extra_forbidden":
        return f"{where}{printable(key)}: no such key; there are {', '.join(model.model_fields)}"
    if problem["type"] == "missing" and len(place) == 1:
        return f"{where}{key}: is missing: must be {model.model_fields[key].description}"
    # Of guests that which is no table, of any other key all that was written.
    value = problem["input"] if key == "guest" else values[key]
    return where + _not_allowed(model, key, value)
