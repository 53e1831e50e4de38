"""The metrics file for node_exporter's textfile collector, in the Prometheus text format.

Rule: the only import of `prometheus_client`, and only imported where a file is asked for. Draws
values, decides nothing. What is not known is absent, never 0.

Names and units are those of node_exporter and of the exporters for libvirt: seconds and ratios, a
load of 1 is one pCPU; `cpu` is a pCPU's number, `domain` a guest's name, `vcpu` a vCPU's number.
There is a series for each pCPU, each running guest and each word of a fixed list, and for each
vCPU only where that is asked for.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
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
from vcpusched.model import PPM, Host
from vcpusched.plan.fairness import unmet_ppm
from vcpusched.plan.planner import Plan
from vcpusched.report.messages import Service, gap_now_ppm
from vcpusched.report.tally import BUCKETS_S, Durations, Tally
from vcpusched.text import printable

PREFIX: Final = "vcpusched_"

_Values = Iterable[tuple[tuple[str, ...], float]]
"""Labels and a value, of each series."""


def write(path: Path, service: Service, tally: Tally, at_s: float, *, per_vcpu: bool) -> None:
    """Replace the file atomically; `at_s` is now, in seconds since the epoch. Raises OSError."""
    registry = CollectorRegistry()
    registry.register(_Collected(families(service, tally, at_s, per_vcpu=per_vcpu)))
    write_to_textfile(str(path), registry)


def families(
    service: Service, tally: Tally, at_s: float, *, per_vcpu: bool = False
) -> Iterator[Metric]:
    """Give all metrics."""
    version = ((__version__,), 1)
    yield _gauges("build_info", "The version that runs.", ("version",), [version])
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
    cycle = service.cycle if is_fine else None
    if cycle is not None:
        yield _gauge("domains", "Running guests.", cycle.domains)
        if cycle.host is not None and cycle.plan is not None:
            yield from _of_host(cycle.host, cycle.plan, gap_now_ppm(cycle, cycle.plan))
    yield from _of_tally(tally)
    if cycle is not None and cycle.host is not None:
        yield from _of_domains(cycle.host, tally, per_vcpu=per_vcpu)


def _of_host(host: Host, plan: Plan, gap_ppm: int) -> Iterator[Metric]:
    yield _gauge(
        "gap_ratio",
        "Load of the busiest less that of the least loaded pCPU, or set of them.",
        gap_ppm / PPM,
    )
    yield _gauge("balanced", "1 if the host was found balanced.", int(plan.balanced))
    yield _gauges(
        "pcpu_load_ratio",
        "What is wanted of each managed pCPU, by guests and the host.",
        ("cpu",),
        (((str(cpu),), load_ppm / PPM) for cpu, load_ppm in plan.loads_before_ppm),
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
    changes = (
        "Affinities changed: by a plan (balance), since a vCPU was worse off pinned, since the"
        " kernel had undone a pin (reset), given back since a pin was not allowed any more"
        " (not_allowed), or as asked."
    )
    failures = "Pins that could not be made; vanished: the guest ended, which is nobody's fault."
    plans = "Plans that were carried out, or would have been but for dry_run."
    verdicts = "What came of plans that were carried out."
    for name, text, label, counts in (
        ("pin_changes", changes, "reason", tally.pin_changes),
        ("pin_failures", failures, "reason", tally.pin_failures),
        ("plans", plans, "outcome", tally.plans),
        ("plan_verdicts", verdicts, "verdict", tally.verdicts),
    ):
        yield _counters(name, text, (label,), (((word,), n) for word, n in counts.items()))
    yield _histogram("cycle_seconds", "How long cycles took.", tally.cycle)
    yield _histogram("plan_seconds", "How long planning took, of each cycle.", tally.plan)


def _of_domains(host: Host, tally: Tally, *, per_vcpu: bool) -> Iterator[Metric]:
    # Who reads the file may have a terminal, so names are made fit to be shown.
    vcpus = [(printable(vcpu.domain), str(vcpu.id.vcpu), vcpu) for vcpu in host.vcpus]
    guests = {(vcpu.id.uuid, vcpu.id.domain_id): name for name, _, vcpu in vcpus}
    yield _counters(
        "domain_delay_seconds",
        "How long the vCPUs of a guest were kept from running by others on their pCPUs.",
        ("domain",),
        (((name,), tally.guest_delays_s.get(guest, 0.0)) for guest, name in guests.items()),
    )
    if not per_vcpu:
        return
    labels = ("domain", "vcpu")
    yield _counters(
        "vcpu_delay_seconds",
        "How long a vCPU was kept from running by others on its pCPU.",
        labels,
        (((name, number), tally.delays_s.get(vcpu.id, 0.0)) for name, number, vcpu in vcpus),
    )
    yield _gauges(
        "vcpu_load_ratio",
        "What a vCPU wants, of a pCPU.",
        labels,
        (((name, number), vcpu.load_ppm / PPM) for name, number, vcpu in vcpus),
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _gauges(name: str, text: str, labels: tuple[str, ...], values: _Values) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), values)


def _counters(name: str, text: str, labels: tuple[str, ...], values: _Values) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: _Values) -> Metric:
    """Add up what has the same labels: a series that is told twice voids all of a scrape."""
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for labels, value in values:
        sums[labels] += value
    for labels, value in sums.items():
        family.add_metric(labels, value)
    return family


def _histogram(name: str, text: str, durations: Durations) -> Metric:
    limits = [*(f"{limit_s:g}" for limit_s in BUCKETS_S), "+Inf"]
    buckets = list(zip(limits, itertools.accumulate(durations.counts), strict=True))
    return HistogramMetricFamily(PREFIX + name, text, buckets=buckets, sum_value=durations.sum_s)


class _Collected(Collector):
    """Metrics that are collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[Metric]:
        """Give them."""
        return self._metrics
