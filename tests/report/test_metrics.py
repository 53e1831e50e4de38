"""The metrics file: names, units, what is counted, and that Prometheus takes it."""

import dataclasses
import io
import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
from builders import host

from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.feedback import Effect, Verdict
from vcpusched.act.ledger import Changed
from vcpusched.host.hypervisor import BusyError, HypervisorError
from vcpusched.model import PPM, Host
from vcpusched.plan.fairness import unmet_ppm
from vcpusched.plan.planner import Cause, Policy, plan
from vcpusched.report.messages import Service
from vcpusched.report.metrics import Metrics
from vcpusched.service.reporter import Reporter
from vcpusched.service.state import State, after
from vcpusched.service.systemd import line_log
from vcpusched.service.worker import Cycled, Outcome
from vcpusched.settings import ConfigError, Settings, load

RULES = Path(__file__).parents[2] / "contrib" / "prometheus" / "rules.yml"
RULES_TEST = Path(__file__).parents[1] / "data" / "rules_test.yml"

CROWDED = host([50, 50, 25, 25], [10])
FOUND = plan(CROWDED, Policy())
G0, G1, *_ = (vcpu.id for vcpu in CROWDED.vcpus)
FAILED = Failure(FOUND.moves[0], "no", kind=BusyError)
EFFECT = Effect(6, Verdict.HELPED, 1_000_000, 0, 60_000, 4, 560_000, 10_000, 20_000)
FIRST = Cycle(6, 5, at_ns=1_000_000_000)
ACTED = Cycle(
    7,
    5,
    host=CROWDED,
    plan=FOUND,
    executed=True,
    pinned=FOUND.moves,
    failures=(FAILED, dataclasses.replace(FAILED, kind=HypervisorError)),
    effects=(EFFECT,),
    at_ns=4_000_000_000,
    waits={G0: 500_000, G1: 250_000},
)
SERVICE = Service(
    pid=1,
    started_at_s=1_790_000_000.0,
    settings=Settings.model_validate({}),
    connected=True,
    cycle=ACTED,
)


def counted(*cycles: Cycle) -> Metrics:
    """Count some cycles."""
    metrics = Metrics()
    for cycle in cycles:
        for move in cycle.pinned:
            metrics.changed(move.cause)
        metrics.cycled(cycle, 0.02, 0.004)
    return metrics


COUNTED = counted(FIRST, ACTED)


def written(path: Path, service: Service, metrics: Metrics, *, per_vcpu: bool = False) -> str:
    """Give the file."""
    file = path / "vcpusched.prom"
    metrics.write(file, service, 1_790_000_100.0, per_vcpu=per_vcpu)
    return file.read_text()


def series(text: str) -> dict[str, float]:
    """Give each series with its value."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_all_of_it(tmp_path: Path) -> None:
    """Loads of 1 are one pCPU, times are seconds, what is counted ends in _total."""
    found = series(written(tmp_path, SERVICE, COUNTED))
    buckets = {name: value for name, value in found.items() if "_seconds_" in name}
    rest = {name: value for name, value in found.items() if name not in buckets}
    assert rest.pop(next(name for name in rest if "build_info" in name)) == 1
    assert rest == {
        "vcpusched_start_time_seconds": 1_790_000_000,
        "vcpusched_last_update_timestamp_seconds": 1_790_000_100,
        "vcpusched_period_seconds": 3,
        "vcpusched_balance_threshold_ratio": 0.1,
        "vcpusched_connected": 1,
        "vcpusched_dry_run": 0,
        "vcpusched_paused": 0,
        "vcpusched_failing_pins": 0,
        "vcpusched_domains": 5,
        "vcpusched_gap_ratio": FOUND.gap_after_ppm / PPM,
        "vcpusched_balanced": 0,
        'vcpusched_pcpu_load_ratio{cpu="0"}': 1.5,
        'vcpusched_pcpu_load_ratio{cpu="1"}': 0.1,
        "vcpusched_vcpus": 5,
        "vcpusched_held_vcpus": 0,
        "vcpusched_unmet_demand_ratio": 0,
        "vcpusched_plan_moves": len(FOUND.moves),
        'vcpusched_pin_changes_total{reason="balance"}': len(FOUND.moves),
        'vcpusched_pin_changes_total{reason="worse_off"}': 0,
        'vcpusched_pin_changes_total{reason="reset"}': 0,
        'vcpusched_pin_changes_total{reason="given_back"}': 0,
        'vcpusched_pin_changes_total{reason="not_allowed"}': 0,
        'vcpusched_pin_failures_total{reason="busy"}': 1,
        'vcpusched_pin_failures_total{reason="denied"}': 0,
        'vcpusched_pin_failures_total{reason="vanished"}': 0,
        'vcpusched_pin_failures_total{reason="not_recorded"}': 0,
        'vcpusched_pin_failures_total{reason="other"}': 1,
        'vcpusched_plans_total{outcome="executed"}': 1,
        'vcpusched_plans_total{outcome="dry_run"}': 0,
        'vcpusched_plan_verdicts_total{verdict="helped"}': 1,
        'vcpusched_plan_verdicts_total{verdict="no_help"}': 0,
        'vcpusched_plan_verdicts_total{verdict="unclear"}': 0,
        'vcpusched_plan_verdicts_total{verdict="no_wait"}': 0,
    }
    assert buckets['vcpusched_domain_delay_seconds_total{domain="g0"}'] == 1.5
    assert buckets['vcpusched_domain_delay_seconds_total{domain="g1"}'] == 0.75
    assert buckets['vcpusched_domain_delay_seconds_total{domain="g2"}'] == 0
    assert buckets['vcpusched_plan_seconds_bucket{le="0.003"}'] == 0
    assert buckets['vcpusched_plan_seconds_bucket{le="0.01"}'] == 2
    assert buckets["vcpusched_cycle_seconds_count"] == 2
    assert buckets["vcpusched_cycle_seconds_sum"] == 0.04


def test_vcpus_only_where_asked_for(tmp_path: Path) -> None:
    """Their number is not bounded by anything an operator chose."""
    assert "vcpusched_vcpu_" not in written(tmp_path, SERVICE, COUNTED)
    found = series(written(tmp_path, SERVICE, COUNTED, per_vcpu=True))
    assert found['vcpusched_vcpu_load_ratio{domain="g0",vcpu="0"}'] == 0.5
    assert found['vcpusched_vcpu_delay_seconds_total{domain="g1",vcpu="0"}'] == 0.75


@pytest.mark.parametrize(
    "service",
    [
        dataclasses.replace(SERVICE, connected=False, cycle=None),
        dataclasses.replace(SERVICE, trouble="it cannot be read"),
        dataclasses.replace(SERVICE, cycle=FIRST),
    ],
)
def test_what_is_not_known_is_absent(tmp_path: Path, service: Service) -> None:
    """Without libvirt, and in the first period: no gap of 0 that would look like balance."""
    text = written(tmp_path, service, Metrics())
    for name in ("gap_ratio", "pcpu_load", "unmet", "domain_delay", "plan_moves", "held"):
        assert f"vcpusched_{name}" not in text
    assert f"vcpusched_connected {0.0 if service.cycle is not FIRST else 1.0}" in text


def hostile(path: Path) -> str:
    """Give the file of guests whose names are meant to break it."""
    names = ['a"} 1\nb', "\x1b[31mred", "\x9b[31mred", "ok\\", "\udcff"]
    vcpus = tuple(
        dataclasses.replace(vcpu, domain=name)
        for vcpu, name in zip(CROWDED.vcpus, names, strict=True)
    )
    odd = dataclasses.replace(ACTED, host=dataclasses.replace(CROWDED, vcpus=vcpus))
    service = dataclasses.replace(SERVICE, cycle=odd)
    return written(path, service, counted(FIRST, odd), per_vcpu=True)


def test_hostile_names(tmp_path: Path) -> None:
    """Neither a line, nor a quote, nor an escape sequence; names that look alike are one series."""
    text = hostile(tmp_path)
    delays = [line for line in text.splitlines() if line.startswith("vcpusched_domain_delay")]
    assert delays == [
        r'vcpusched_domain_delay_seconds_total{domain="a\"} 1?b"} 1.5',
        r'vcpusched_domain_delay_seconds_total{domain="?[31mred"} 0.75',
        r'vcpusched_domain_delay_seconds_total{domain="ok\\"} 0.0',
        r'vcpusched_domain_delay_seconds_total{domain="?"} 0.0',
    ]
    assert "\x1b" not in text


@pytest.mark.full
def test_prometheus_can_read_it(tmp_path: Path) -> None:
    """Prometheus' own tool has nothing to say about it."""
    usual = written(tmp_path, SERVICE, COUNTED)
    lost = written(tmp_path, dataclasses.replace(SERVICE, connected=False, cycle=None), Metrics())
    for text in (usual, lost, hostile(tmp_path)):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_delay_of_a_guest_never_falls(tmp_path: Path) -> None:
    """Of a vCPU that is taken away its guest keeps what it waited; a guest begun anew has 0."""
    both = tuple(
        dataclasses.replace(vcpu, id=G0._replace(vcpu=number), domain="g0")
        for number, vcpu in enumerate(CROWDED.vcpus[:2])
    )
    waits = {vcpu.id: 500_000 for vcpu in both}
    drawn = dataclasses.replace(CROWDED, vcpus=both)
    one = dataclasses.replace(ACTED, host=drawn, waits=waits)
    left = dataclasses.replace(drawn, vcpus=both[:1])
    two = dataclasses.replace(one, host=left, at_ns=one.at_ns + 1_000_000_000)
    anew = dataclasses.replace(both[0], id=G0._replace(domain_id=99))
    begun = dataclasses.replace(left, vcpus=(anew,))
    three = dataclasses.replace(two, host=begun, at_ns=two.at_ns + 1_000_000_000)
    delays = [
        series(written(tmp_path, dataclasses.replace(SERVICE, cycle=cycles[-1]), counted(*cycles)))[
            'vcpusched_domain_delay_seconds_total{domain="g0"}'
        ]
        for cycles in ((FIRST, one), (FIRST, one, two), (FIRST, one, two, three))
    ]
    assert delays == [3.0, 3.5, 0.0]


def test_guests_that_ended_leave_no_series(tmp_path: Path) -> None:
    """Or there would be more of them for ever."""
    left = dataclasses.replace(CROWDED, vcpus=CROWDED.vcpus[1:])
    then = dataclasses.replace(ACTED, host=left, at_ns=ACTED.at_ns + 3_000_000_000)
    service = dataclasses.replace(SERVICE, cycle=then)
    found = series(written(tmp_path, service, counted(FIRST, ACTED, then)))
    assert 'vcpusched_domain_delay_seconds_total{domain="g0"}' not in found
    assert found['vcpusched_domain_delay_seconds_total{domain="g1"}'] == 1.5


@pytest.mark.parametrize(
    ("drawn", "unmet_ppm_wanted"),
    [
        (host([50, 50, 25, 25], [10]), 0),  # a move would cure that
        (host([80, 80], [80]), 400_000),  # nothing would
        (host([80, 80], [], allowed="0"), 600_000),  # the guests' definitions forbid it
        (host([100], [100]), 0),
        (host([], []), 0),
    ],
)
def test_unmet_demand(drawn: Host, unmet_ppm_wanted: int) -> None:
    """Only what no move on this host can cure: the signal to migrate a guest away."""
    assert unmet_ppm(drawn) == pytest.approx(unmet_ppm_wanted, abs=20)


def reported(reporter: Reporter, state: State, *outcomes: Outcome) -> State:
    """Have outcomes reported, one after the other; return the state after the last one."""
    for outcome in outcomes:
        before, state = state, after(state, outcome, 0.0, 1.0)
        reporter.report(before, outcome, state)
    return state


def test_the_service_writes_it(tmp_path: Path) -> None:
    """Each cycle; a place that cannot be written is reported once; the end takes the file away."""
    said, file = io.StringIO(), tmp_path / "metrics" / "vcpusched.prom"
    chosen = Settings.model_validate({"metrics_file": str(file), "log_level": "warning"})
    reporter, cycled = Reporter(partial(line_log, said), tmp_path, chosen), Cycled(ACTED, 0.1, 0.1)
    state = reported(reporter, State(dataclasses.replace(SERVICE, settings=chosen)), cycled, cycled)
    assert said.getvalue().count("Could not write metrics to") == 1
    file.parent.mkdir()
    move = FOUND.moves[0]
    causes = (Cause.BALANCE, Cause.RESTORED, Cause.RESET, Cause.PINNED)
    changes = [Changed(dataclasses.replace(move, cause=cause)) for cause in causes]
    reported(reporter, state, *changes, cycled)
    found = series(file.read_text())
    assert found['vcpusched_pin_changes_total{reason="balance"}'] == 1
    assert found['vcpusched_pin_changes_total{reason="reset"}'] == 1
    assert found['vcpusched_pin_changes_total{reason="given_back"}'] == 1
    assert list(file.parent.iterdir()) == [file]
    other = file.with_name("other.prom")
    reporter.reloaded(Settings.model_validate({"metrics_file": str(other)}))
    reporter.show(SERVICE)
    assert list(file.parent.iterdir()) == [other]
    reporter.end_metrics()
    assert not list(file.parent.iterdir())


@pytest.mark.full
def test_alerts(tmp_path: Path) -> None:
    """The rules are right by Prometheus' own tool, go by series that there are, and fire."""
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(RULES_TEST)]):
        done = subprocess.run(
            ["promtool", *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    names = {name.partition("{")[0] for name in series(written(tmp_path, SERVICE, COUNTED))}
    rules = RULES.read_text()
    assert set(re.findall(r"vcpusched_[a-z_]+", rules)) <= names
    alerts = re.findall(r"alert: (\w+)", rules)
    tried = re.findall(r"alertname: (\w+)\n +exp_alerts:\n +- ", RULES_TEST.read_text())
    assert sorted(set(tried)) == sorted(alerts)
    quiet = re.findall(r"alertname: (\w+), exp_alerts: \[\]", RULES_TEST.read_text())
    assert sorted(set(quiet)) == sorted(alerts)
    assert all(name.startswith("Vcpusched") for name in alerts)


@pytest.mark.parametrize("path", ["vcpusched.prom", "/run/metrics", "/run/a\nb.prom"])
def test_a_file_that_nobody_would_read(path: str) -> None:
    """node_exporter passes over names that do not end in .prom."""
    with pytest.raises(ConfigError, match="must be empty, or the whole path of a file"):
        load(flags={"metrics_file": path})
