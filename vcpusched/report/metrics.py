"""The metrics file for node_exporter's textfile collector, in the Prometheus text format.

Rule: the only import of `prometheus_client`, and only imported where a file is asked for. Draws
values, decides nothing. What is not known is absent, never 0.

Names and units are those of node_exporter and of the exporters for libvirt: seconds and ratios, a
load of 1 is one pCPU; `cpu` is a pCPU's number, `domain` a guest's name, `vcpu` a vCPU's number.
There is a series for each pCPU, each running guest and each word of a fixed list, and for each
vCPU only where that is asked for.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vcpusched import __version__
from vcpusched.act.cycle import Cycle
from vcpusched.act.feedback import Verdict
from vcpusched.model import PPM, DomainUuid, Host, VcpuId
from vcpusched.plan.fairness import unmet_ppm
from vcpusched.plan.planner import Cause, Plan
from vcpusched.report.messages import CATALOGUE, Service, gap_now_ppm
from vcpusched.text import printable

PREFIX: Final = "vcpusched_"

FAILURES: Final = {
    "VanishedError": "vanished",
    "BusyError": "busy",
    "PermissionDeniedError": "denied",
    "NotRecordedError": "not_recorded",
    "OvertakenError": "vanished",
}
"""The words for the kinds of failures; any other is `OTHER`."""

OTHER: Final = "other"

BUCKETS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

_Values = Iterable[tuple[tuple[str, ...], float]]
"""Labels and a value, of each series."""


class Metrics:
    """What is counted since a metrics file was asked for, and the file."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._pin_changes = self._counter(
            "pin_changes",
            "Affinities changed, by cause: a plan (balance), a vCPU that was worse off pinned,"
            " a pin that the kernel had reset (reset), a pin that is not allowed any more, or a"
            " restore (given_back).",
            reason=CATALOGUE,
        )
        self._pin_failures = self._counter(
            "pin_failures",
            "Pins that could not be made; vanished: the guest ended or another pinned it.",
            reason=[*FAILURES.values(), OTHER],
        )
        self._plans = self._counter(
            "plans", "Plans carried out, or skipped by dry_run.", outcome=["executed", "dry_run"]
        )
        self._verdicts = self._counter(
            "plan_verdicts", "What plans brought that were carried out.", verdict=Verdict
        )
        self._cycle = self._histogram("cycle_seconds", "How long cycles took.")
        self._plan = self._histogram("plan_seconds", "How long planning took, of each cycle.")
        self._delays_s: dict[VcpuId, float] = {}
        self._guest_delays_s: dict[tuple[DomainUuid, int], float] = {}
        """With what vCPUs waited that are gone: a sum that falls counts as one that began anew."""
        self._last_ns: int | None = None

    def _counter(self, name: str, text: str, **words: Iterable[str]) -> Counter:
        """Return a counter with all words of its one label: rates miss a first value above 0."""
        ((label, values),) = words.items()
        counter = Counter(PREFIX + name, text, [label], registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(PREFIX + name, text, buckets=BUCKETS_S, registry=self._registry)

    def changed(self, cause: Cause) -> None:
        """Count an affinity that vcpusched changed."""
        self._pin_changes.labels(cause.value).inc()

    def cycled(self, cycle: Cycle, took_s: float, planned_s: float) -> None:
        """Count what a cycle did but for changes; `planned_s` is the part that planning took."""
        for failure in cycle.failures:
            self._pin_failures.labels(FAILURES.get(failure.kind.__name__, OTHER)).inc()
        for effect in cycle.effects:
            self._verdicts.labels(effect.verdict.value).inc()
        if cycle.executed and cycle.plan is not None:
            self._plans.labels("dry_run" if cycle.dry_run else "executed").inc()
        self._cycle.observe(took_s)
        self._plan.observe(planned_s)
        self._add_delays(cycle)

    def _add_delays(self, cycle: Cycle) -> None:
        """Add the wait since the last cycle; guests that ended are forgotten."""
        last_ns, self._last_ns = self._last_ns, cycle.at_ns
        if cycle.host is None:
            return
        elapsed_s = max(0, cycle.at_ns - last_ns) / 1e9 if last_ns is not None else 0.0
        vcpus, guests = self._delays_s, self._guest_delays_s
        self._delays_s, self._guest_delays_s = {}, {}
        for vcpu in cycle.host.vcpus:
            guest = vcpu.id.uuid, vcpu.id.domain_id
            delay_s = elapsed_s * cycle.waits.get(vcpu.id, 0) / PPM
            self._delays_s[vcpu.id] = vcpus.get(vcpu.id, 0.0) + delay_s
            so_far_s = self._guest_delays_s.get(guest, guests.get(guest, 0.0))
            self._guest_delays_s[guest] = so_far_s + delay_s

    def write(self, path: Path, service: Service, at_s: float, *, per_vcpu: bool) -> None:
        """Replace the file atomically; `at_s` is seconds since the epoch. Raises OSError."""
        families = self.families(service, at_s, per_vcpu=per_vcpu)
        write_to_textfile(str(path), _Collected(families))

    def families(self, service: Service, at_s: float, *, per_vcpu: bool) -> Iterator[Metric]:
        """Return all metrics, those of the last cycle only while the host can be read."""
        can_read = service.connected and service.trouble is None
        cycle = service.cycle if can_read else None
        version = ((__version__,), 1)
        yield _gauges("build_info", "The version that runs.", ("version",), [version])
        for name, text, value in (
            ("start_time_seconds", "When the service began.", service.started_at_s),
            ("last_update_timestamp_seconds", "When these metrics were updated.", at_s),
            ("period_seconds", "The setting period.", service.settings.period),
            (
                "balance_threshold_ratio",
                "The setting balance_threshold: from this gap on the host is unbalanced.",
                service.settings.balance_threshold / 100,
            ),
            ("connected", "1 while the host can be read, 0 while it cannot.", can_read),
            ("dry_run", "1 while nothing is changed.", service.settings.dry_run),
            ("paused", "1 while a pause lasts.", service.paused is not None),
            ("failing_pins", "Pins of the last plan that failed.", len(service.pins_failing)),
            *(_of_cycle(cycle) if cycle is not None else ()),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        for counted in self._registry.collect():
            # Libraries before 0.17 give the time when a counter began, whether wanted or not.
            counted.samples = [one for one in counted.samples if not one.name.endswith("_created")]
            yield counted
        if cycle is not None and cycle.host is not None and cycle.plan is not None:
            yield from self._of_parts(cycle.host, cycle.plan, per_vcpu=per_vcpu)

    def _of_parts(self, host: Host, plan: Plan, *, per_vcpu: bool) -> Iterator[Metric]:
        yield _gauges(
            "pcpu_load_ratio",
            "What is wanted of each managed pCPU, by guests and the host.",
            ("cpu",),
            (((str(cpu),), load_ppm / PPM) for cpu, load_ppm in plan.loads_before_ppm),
        )
        # The file may be shown on a terminal, so names are made fit for that.
        vcpus = [(printable(vcpu.domain), str(vcpu.id.vcpu), vcpu) for vcpu in host.vcpus]
        guests = {(vcpu.id.uuid, vcpu.id.domain_id): name for name, _, vcpu in vcpus}
        yield _counters(
            "domain_delay_seconds",
            "How long other threads on their pCPUs kept the vCPUs of a guest from running.",
            ("domain",),
            (((name,), self._guest_delays_s.get(guest, 0.0)) for guest, name in guests.items()),
        )
        if not per_vcpu:
            return
        labels = ("domain", "vcpu")
        yield _counters(
            "vcpu_delay_seconds",
            "How long other threads on its pCPU kept a vCPU from running.",
            labels,
            (((name, number), self._delays_s.get(vcpu.id, 0.0)) for name, number, vcpu in vcpus),
        )
        yield _gauges(
            "vcpu_load_ratio",
            "What a vCPU wants, of a pCPU.",
            labels,
            (((name, number), vcpu.load_ppm / PPM) for name, number, vcpu in vcpus),
        )


def _of_cycle(cycle: Cycle) -> Iterator[tuple[str, str, float]]:
    """Yield the name, text and value of what is known after a cycle."""
    yield "domains", "Running guests.", cycle.domains
    host, plan = cycle.host, cycle.plan
    if host is None or plan is None:
        return
    gap = "Load of the busiest less that of the least loaded pCPU, or set of them."
    unmet = "Demand, in pCPUs, that no move on this host can meet."
    yield "gap_ratio", gap, gap_now_ppm(cycle, plan) / PPM
    yield "balanced", "1 if the host was found balanced.", plan.balanced
    yield "vcpus", "vCPUs whose load is known.", len(host.vcpus)
    yield "held_vcpus", "vCPUs that may not be moved.", sum(vcpu.fixed for vcpu in host.vcpus)
    yield "unmet_demand_ratio", unmet, unmet_ppm(host) / PPM
    yield "plan_moves", "Pin changes of the last plan.", len(plan.moves)


def _gauges(name: str, text: str, labels: tuple[str, ...], values: _Values) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), values)


def _counters(name: str, text: str, labels: tuple[str, ...], values: _Values) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: _Values) -> Metric:
    """Add up what has the same labels: a series that occurs twice voids all of a scrape."""
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for labels, value in values:
        sums[labels] += value
    for labels, value in sums.items():
        family.add_metric(labels, value)
    return family


class _Collected(Collector):
    """Metrics that are collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._metrics
