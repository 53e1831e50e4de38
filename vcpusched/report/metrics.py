"""The metrics file for node_exporter's textfile collector, in the Prometheus text format.

Rule: the only import of `prometheus_client`, and only imported where a file is asked for. Draws
values, decides nothing. What is not known is absent, never 0.

Names and units are those of node_exporter and of the exporters for libvirt: seconds and ratios, a
load of 1 is one pCPU; `cpu` is a pCPU's number, `domain` a guest's name, `vcpu` a vCPU's number.
There is a series for each pCPU, each running guest and each word of a fixed list, and for each
vCPU only where that is asked for.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from vcpusched import __version__
from vcpusched.model import PPM, Host, VcpuId
from vcpusched.plan.planner import Plan
from vcpusched.plan.service import unmet_ppm
from vcpusched.report.messages import Service, gap_now_ppm
from vcpusched.report.tally import BUCKETS_S, Durations, Tally
from vcpusched.text import printable

PREFIX: Final = "vcpusched_"


def write(path: Path, service: Service, tally: Tally, at_s: float, *, per_vcpu: bool) -> None:
    """Replace the file atomically; `at_s` is now, in seconds since the epoch. Raises OSError."""
    registry = CollectorRegistry()
    registry.register(_Collected(families(service, tally, at_s, per_vcpu=per_vcpu)))
    write_to_textfile(str(path), registry)


def families(
    service: Service, tally: Tally, at_s: float, *, per_vcpu: bool = False
) -> Iterator[Metric]:
    """Give all metrics."""
    yield _info("build_info", "The version that runs.", {"version": __version__})
    yield _gauge("start_time_seconds", "When the service began.", service.started_at_s)
    yield _gauge(
        "last_update_timestamp_seconds", "When these metrics were brought up to date.", at_s
    )
    yield _gauge("period_seconds", "The setting period.", service.period_s)
    yield _gauge(
        "balance_threshold_ratio",
        "The setting balance_threshold: from this gap on the host is unbalanced.",
        service.threshold_ppm / PPM,
    )
    is_fine = service.connected and service.trouble is None
    yield _gauge("connected", "1 while the host can be read, 0 while it cannot.", int(is_fine))
    yield _gauge("dry_run", "1 while nothing is changed.", int(service.dry_run))
    yield _gauge("paused", "1 while a pause lasts.", int(service.paused is not None))
    yield _gauge(
        "failing_pins", "Pins of the last plan that could not be made.", len(service.pins_failing)
    )
    if is_fine and service.cycle is not None:
        yield _gauge("domains", "Running guests.", service.cycle.domains)
        if service.cycle.host is not None and service.cycle.plan is not None:
            gap_ppm = gap_now_ppm(service.cycle, service.cycle.plan)
            yield from _of_host(service.cycle.host, service.cycle.plan, gap_ppm)
    yield from _of_tally(tally)
    host = service.cycle.host if is_fine and service.cycle is not None else None
    if host is not None:
        yield from _of_domains(host, tally, per_vcpu=per_vcpu)


def _of_host(host: Host, plan: Plan, gap_ppm: int) -> Iterator[Metric]:
    yield _gauge(
        "gap_ratio", "Load of the busiest less that of the freest managed pCPU.", gap_ppm / PPM
    )
    yield _gauge("balanced", "1 if the host was found balanced.", int(plan.balanced))
    yield _gauges(
        "pcpu_load_ratio",
        "What is wanted of each managed pCPU, by guests and the host.",
        ("cpu",),
        {(str(cpu),): load_ppm / PPM for cpu, load_ppm in plan.loads_before_ppm},
    )
    yield _gauge("vcpus", "vCPUs whose load is known.", len(host.vcpus))
    yield _gauge(
        "held_vcpus", "vCPUs that may not be moved.", sum(vcpu.fixed for vcpu in host.vcpus)
    )
    yield _gauge(
        "unmet_demand_ratio",
        "Demand, in pCPUs, that no move on this host can meet.",
        unmet_ppm(host) / PPM,
    )
    yield _gauge("plan_moves", "Pin changes of the last plan.", len(plan.moves))


def _of_tally(tally: Tally) -> Iterator[Metric]:
    yield _counters(
        "pin_changes",
        "Affinities changed: by a plan (balance), since a vCPU was worse off pinned, since the"
        " kernel had undone a pin (reset), or given back as asked.",
        ("reason",),
        {(reason,): count for reason, count in tally.pin_changes.items()},
    )
    yield _counters(
        "pin_failures",
        "Pins that could not be made; vanished: the guest ended, which is nobody's fault.",
        ("reason",),
        {(reason,): count for reason, count in tally.pin_failures.items()},
    )
    yield _counters(
        "plans",
        "Plans that were carried out, or would have been but for dry_run.",
        ("outcome",),
        {(outcome,): count for outcome, count in tally.plans.items()},
    )
    yield _counters(
        "plan_verdicts",
        "What came of plans that were carried out.",
        ("verdict",),
        {(verdict,): count for verdict, count in tally.verdicts.items()},
    )
    yield _histogram("cycle_seconds", "How long cycles took.", tally.cycle)
    yield _histogram("plan_seconds", "How long planning took, of each cycle.", tally.plan)


def _of_domains(host: Host, tally: Tally, *, per_vcpu: bool) -> Iterator[Metric]:
    names = {vcpu.id: vcpu.domain for vcpu in host.vcpus}
    yield _counters(
        "domain_delay_seconds",
        "How long the vCPUs of a guest were kept from running by others on their pCPUs.",
        ("domain",),
        _summed(
            ((_label(names[vcpu]),), delay_s)
            for vcpu, delay_s in tally.delays_s.items()
            if vcpu in names
        ),
    )
    if not per_vcpu:
        return
    yield _counters(
        "vcpu_delay_seconds",
        "How long a vCPU was kept from running by others on its pCPU.",
        ("domain", "vcpu"),
        _summed(
            (_vcpu(names, vcpu), delay_s)
            for vcpu, delay_s in tally.delays_s.items()
            if vcpu in names
        ),
    )
    yield _gauges(
        "vcpu_load_ratio",
        "What a vCPU wants, of a pCPU.",
        ("domain", "vcpu"),
        _summed((_vcpu(names, vcpu.id), vcpu.load_ppm / PPM) for vcpu in host.vcpus),
    )


def _vcpu(names: Mapping[VcpuId, str], vcpu: VcpuId) -> tuple[str, ...]:
    return _label(names[vcpu]), str(vcpu.vcpu)


def _label(name: str) -> str:
    """Give a guest's name, made fit to be shown: whoever reads the file may have a terminal."""
    return printable(name)


def _summed(values: Iterable[tuple[tuple[str, ...], float]]) -> Mapping[tuple[str, ...], float]:
    """Add up what has the same labels: a series that is told twice voids all of a scrape."""
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for labels, value in values:
        sums[labels] += value
    return sums


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _info(name: str, text: str, labels: Mapping[str, str]) -> Metric:
    return _gauges(name, text, tuple(labels), {tuple(labels.values()): 1})


def _gauges(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _counters(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _histogram(name: str, text: str, durations: Durations) -> Metric:
    count, buckets = 0, []
    limits = [f"{limit_s:g}" for limit_s in BUCKETS_S]
    for limit, in_bucket in zip([*limits, "+Inf"], durations.counts, strict=True):
        count += in_bucket
        buckets.append((limit, count))
    return HistogramMetricFamily(PREFIX + name, text, buckets=buckets, sum_value=durations.sum_s)


class _Collected(Collector):
    """Metrics that are collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[Metric]:
        """Give them."""
        return self._metrics
