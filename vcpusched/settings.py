"""The only place where text becomes settings.

Rule: every mistake, wherever it is written, becomes one `ConfigError` whose text is one line: the
file, variable or option; the setting; the value; what is allowed. Each source is checked on its
own, so a mistake in a file is reported even where a variable outranks it.
"""

import contextlib
import difflib
import os
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from vcpusched.act.cycle import Rules
from vcpusched.model import ALL_CPUS, NO_CPUS, PPM_PER_POINT, Granularity
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.plan.planner import Floating, Policy
from vcpusched.text import listed, printable, shown

DEFAULT_FILE: Final = Path("/etc/vcpusched/vcpusched.toml")
DROP_INS: Final = Path("/etc/vcpusched/conf.d")
ENVIRONMENT_PREFIX: Final = "VCPUSCHED_"
FLAGS: Final = "command line"

_WORDS: Final = {
    "uri": "a libvirt URI of this host such as qemu:///system",
    "cpus": 'a list of at least one pCPU such as "0-3,8" or "all,^isolated,^2-3"',
    "include_domains": 'a list of names or globs of guests such as ["web*", "db"]',
    "metrics_file": "empty, or the whole path of a file whose name ends in .prom",
    "exclude_domains": 'a list of names or globs of guests such as ["web*", "db"]',
}
"""What a setting that is a text or a list may be."""

_GONE: Final = {
    "granularity": "now called pin_to",
    "moves_max": "now called max_moves",
    "service_check": "now called fair_shares",
    "act_on": 'no longer a setting: floating = "auto" pins floating vCPUs only where they wait',
    "confirm": "no longer a setting: two periods confirm an imbalance",
    "measure": "no longer a setting: load is demand",
    "node_gain": "no longer a setting: the price follows from min_gain",
    "settle": "no longer a setting: fixed at 10 s",
    "exclude_cpus": 'write cpus = "all,^2-3" instead',
    "exit_when_idle": "an option of vcpusched run: --exit-when-idle",
}
"""What to write instead of a setting that there was."""


class ConfigError(Exception):
    """A setting is wrong. `on_command_line` separates a usage error from a configuration error."""

    def __init__(self, lines: Sequence[str], *, on_command_line: bool = False) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)
        self.on_command_line = on_command_line


def _local_uri(uri: str) -> str:
    """Refuse what is no URI of this machine's libvirt: pins are a matter of one host."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not scheme or not uri.isprintable():
        raise ValueError("must be a libvirt URI such as qemu:///system")
    transport = scheme.partition("+")[2]
    if not rest.startswith("/") or transport not in {"", "unix"}:
        raise ValueError("must be local: vcpusched runs on the host whose vCPUs it places")
    return uri


def _metrics_file(path: str) -> str:
    """Take what node_exporter reads: names without this ending it passes over."""
    if path and not (path.startswith("/") and path.endswith(".prom") and path.isprintable()):
        raise ValueError
    return path


def _cpus(text: str) -> str:
    """Take a list of at least one pCPU, be it only where some are isolated, or none."""
    with contextlib.suppress(ValueError):
        if any(PlacementRules(text).managed(ALL_CPUS, kept) for kept in (NO_CPUS, ALL_CPUS)):
            return text
    raise ValueError


def _globs(globs: list[str]) -> list[str]:
    if not all(glob.strip() for glob in globs):
        raise ValueError("must hold no empty name")
    return globs


class Settings(BaseModel):
    """All settings, with their defaults, limits and meaning.

    No `BaseSettings`: those cannot be validated strictly, and in a TOML file a number in quotes is
    a mistake. `enable_decoding` is for variables: lists in these are no JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, enable_decoding=False)  # type: ignore[typeddict-unknown-key]

    period: float = Field(3.0, ge=0.5, le=3600)
    """Sampling period in seconds."""

    balance_threshold: float = Field(10.0, gt=0, le=100)
    """The gap between the busiest and the least loaded pCPU, in percentage points of one pCPU, from
    which the host is unbalanced."""

    min_gain: float = Field(5.0, ge=0, le=100)
    """Percentage points of a pCPU by which a pin change must reduce the load outside the balanced
    band; 2.5 times as many to another cache, 4 times to another node. A plan that balances may gain
    less."""

    max_moves: int = Field(32, ge=0, le=100_000)
    """The most pin changes in one plan; the next plan continues from there. 0: no limit."""

    half_life: float = Field(30.0, ge=0, le=86_400)
    """Half-life of the load average in seconds: longer means fewer pins, and later ones."""

    cooldown: float = Field(60.0, ge=0, le=86_400)
    """Seconds within which a vCPU is not moved again."""

    pin_to: Literal["auto", "cpu", "core", "cache", "node"] = "auto"
    """What a vCPU is pinned to: one pCPU ("cpu"), or all pCPUs of a "core", of a last-level "cache"
    or of a NUMA "node", among which the kernel chooses. "auto": a cache if there are two or more of
    at least four pCPUs, else a node likewise, else one pCPU."""

    floating: Literal["auto", "pin", "kernel"] = "auto"
    """What to do with vCPUs that may use several pCPUs. "kernel": leave them to the kernel. "pin":
    pin them if the host is then balanced and none of their pCPUs saturated. "auto": as "pin", but
    only a vCPU that waited 5% of two periods in a row while a pCPU it may use was idle for 20%."""

    fair_shares: bool = True
    """Refuse plans after which a vCPU gets, for its weight, over a tenth less than the worst-served
    one gets now, or all vCPUs concerned get over a point less together."""

    cpus: Annotated[str, AfterValidator(_cpus)] = "all,^isolated"
    """The pCPUs to balance, read from left to right: ^ takes pCPUs out, isolated are those that the
    kernel isolates (isolcpus=) or keeps tickless (nohz_full=). No vCPU is moved to the others."""

    include_domains: Annotated[list[str], AfterValidator(_globs)] = ["*"]
    """Names or globs of the guests whose vCPUs may be moved. The others count as load."""

    exclude_domains: Annotated[list[str], AfterValidator(_globs)] = []
    """Names or globs of guests whose vCPUs are not moved even so."""

    on_stop: Literal["restore", "leave"] = "restore"
    """What a stop of the service does: "restore" the affinity that each vCPU had before its first
    pin, or "leave" the pins. A restart always leaves them."""

    uri: Annotated[str, AfterValidator(_local_uri)] = "qemu:///system"
    """The libvirt of this host; with ?authfile=FILE if it asks for a name and a password (SASL)."""

    dry_run: bool = False
    """Decide and report as usual, but change no pin."""

    metrics_file: Annotated[str, AfterValidator(_metrics_file)] = ""
    """Where to write metrics each period, for node_exporter's textfile collector; empty: nowhere.
    vcpusched-metrics(7) says how the service gets access to that directory."""

    metrics_per_vcpu: bool = False
    """Export two more metrics for each vCPU, not only for each guest."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages to report."""

    def policy(self) -> Policy:
        """Return what the planner must know."""
        return Policy(
            balance_threshold_ppm=max(1, round(self.balance_threshold * PPM_PER_POINT)),
            min_gain_ppm=round(self.min_gain * PPM_PER_POINT),
            max_moves=self.max_moves or None,
            floating=Floating(self.floating),
            fair_shares=self.fair_shares,
            pin_to=Granularity(self.pin_to),
        )

    def placement_rules(self) -> PlacementRules:
        """Return which pCPUs and guests are managed."""
        return PlacementRules(
            cpus=self.cpus,
            include_domains=tuple(self.include_domains),
            exclude_domains=tuple(self.exclude_domains),
            granularity=Granularity(self.pin_to),
        )

    def rules(self) -> Rules:
        """Return what the scheduler must know."""
        return Rules(
            policy=self.policy(),
            placement_rules=self.placement_rules(),
            half_life_s=self.half_life,
            cooldown_s=self.cooldown,
            dry_run=self.dry_run,
        )


@dataclass(frozen=True, slots=True)
class Effective:
    """The settings in force, and for each where it came from."""

    settings: Settings
    origin: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Layer:
    """What one source says; `names` gives how each key is written there."""

    where: str
    values: Mapping[str, Any]
    strict: bool
    names: Mapping[str, str]


def load(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> Effective:
    """Read all sources, in rising order of precedence: file, drop-ins, environment, flags.

    `config` replaces the default file and the drop-ins. Raises ConfigError.
    """
    problems: list[str] = []
    flag_layer = _Layer(FLAGS, _listed(flags or {}), strict=False, names={})
    if flag_problems := _check(flag_layer):
        raise ConfigError(flag_problems, on_command_line=True)
    layers: list[_Layer] = []
    for path in _files(config, problems):
        try:
            layers.append(_file_layer(path))
        except ConfigError as error:
            problems.extend(error.lines)
    layers.append(_environment_layer())
    problems.extend(problem for layer in layers for problem in _check(layer))
    if problems:
        raise ConfigError(problems)
    layers.append(flag_layer)
    values = {key: value for layer in layers for key, value in layer.values.items()}
    origin = dict.fromkeys(Settings.model_fields, "default") | {
        key: layer.names.get(key, layer.where) for layer in layers for key in layer.values
    }
    return Effective(settings=Settings(**values), origin=origin)


def allowed(key: str) -> str:
    """Return in words what a setting may be, from its declaration."""
    declared = Settings.model_fields[key]
    if typing.get_origin(declared.annotation) is Literal:
        choices = typing.get_args(declared.annotation)
        return "one of " + ", ".join(f'"{choice}"' for choice in choices)
    if declared.annotation is bool:
        return "true or false"
    if key in _WORDS:
        return _WORDS[key]
    kind = "a whole number" if declared.annotation is int else "a number"
    return f"{kind} {_bounds(declared)}"


def _bounds(declared: FieldInfo) -> str:
    low, high = declared.metadata  # every number has both
    begins = f"from {low.ge:g}" if hasattr(low, "ge") else f"above {low.gt:g}, up"
    return f"{begins} to {high.le:g}"


def _files(config: Path | None, problems: list[str]) -> list[Path]:
    if config is not None:
        return [config]
    found: list[Path] = []
    for path in (DEFAULT_FILE, DROP_INS):
        try:
            path.stat()
            every = path.iterdir() if path is DROP_INS else [path]
            found += sorted(one for one in every if one.suffix == ".toml")
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or path.is_symlink():  # else defaults
                problems.append(f"{path}: cannot be read: {error.strerror}")
    return found


def _file_layer(path: Path) -> _Layer:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:  # Python refuses numbers of 5,000 digits
        words = {UnicodeDecodeError: "not UTF-8 text", RecursionError: "nested too deeply"}
        why = words.get(type(error)) or printable(str(error), 200)
        raise ConfigError([f"{path}: not a TOML file: {why}"]) from None
    return _Layer(str(path), values, strict=True, names={})


def _environment_layer() -> _Layer:
    names = {
        name.upper().removeprefix(ENVIRONMENT_PREFIX).lower(): name
        for name in sorted(os.environ)
        if name.upper().startswith(ENVIRONMENT_PREFIX)
    }
    known: dict[str, Any] = {}
    if names:
        # For the fields of any model. It takes 4 MiB, and the packaged service has no variables.
        from pydantic_settings import EnvSettingsSource  # noqa: PLC0415

        known = EnvSettingsSource(Settings, env_prefix=ENVIRONMENT_PREFIX)()  # type: ignore[arg-type]
    unknown = {key: os.environ[name] for key, name in names.items() if key not in known}
    return _Layer("environment", _listed({**known, **unknown}), strict=False, names=names)


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, with lists for texts where that is what a setting is."""
    found = dict(values)
    for key, field in Settings.model_fields.items():
        if field.annotation == list[str] and isinstance(text := found.get(key), str):
            found[key] = listed(text)
    return found


def _check(layer: _Layer) -> list[str]:
    try:
        Settings.model_validate(dict(layer.values), strict=layer.strict)
    except ValidationError as error:
        return [_problem(layer, dict(problem)) for problem in error.errors(include_url=False)]
    return []


def _problem(layer: _Layer, problem: Mapping[str, Any]) -> str:
    # A name that is no text has no place at all.
    key = str(problem["loc"][0]) if problem["loc"] else "?"
    where = printable(layer.names.get(key) or f"{layer.where}: {printable(key)}", 200)
    if key in _GONE:
        return f"{where}: {_GONE[key]}"
    if problem["type"] == "extra_forbidden":
        if isinstance(problem["input"], dict):
            return f"{where}: no such table; settings are not in tables"
        near = difflib.get_close_matches(key, Settings.model_fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{where}: no such setting{hint} (there are {', '.join(Settings.model_fields)})"
    value = shown(problem["input"], 120)
    why = str(problem.get("ctx", {}).get("error", "")) if problem["type"] == "value_error" else ""
    return f"{where}: {value} is not allowed: {why or 'must be ' + allowed(key)}"
