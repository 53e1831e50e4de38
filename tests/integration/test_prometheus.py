"""Metrics on their whole way: the service, node_exporter, Prometheus, dashboard and alerts."""

import contextlib
import http.client
import json
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import Lab
from service import running, wait_for

TOP = Path(__file__).resolve().parents[2]
DASHBOARD = TOP / "contrib" / "grafana" / "vcpusched.json"
RULES = TOP / "contrib" / "prometheus" / "rules.yml"

FILLED_IN = {"$instance": ".+", "$domain": ".+", "$__rate_interval": "20s", "$__range": "1m"}
"""What Grafana puts in the place of its variables, for a minute's worth of samples."""

EMPTY_HERE = {"Pins that failed", "Moves of the last plan"}
"""Panels of which an expression has no data as long as nothing fails and no plan has its bound."""


def free_port() -> int:
    """Give a port of the loopback address that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Prometheus:
    """A node_exporter that reads a folder, and a Prometheus that asks it every second."""

    def __init__(self, directory: Path) -> None:
        self.metrics = directory / "textfile"
        self.metrics.mkdir()
        exporter, self._port = free_port(), free_port()
        target = {"job_name": "node", "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}]}
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [target],
        }
        file = directory / "prometheus.yml"
        file.write_text(json.dumps(configuration))  # JSON is YAML, too
        self._log = directory / "log"
        commands = (
            [
                "prometheus-node-exporter",
                f"--web.listen-address=127.0.0.1:{exporter}",
                "--collector.disable-defaults",
                "--collector.textfile",
                f"--collector.textfile.directory={self.metrics}",
            ],
            [
                "prometheus",
                f"--web.listen-address=127.0.0.1:{self._port}",
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
            ],
        )
        with self._log.open("wb") as log:
            self._processes = [
                subprocess.Popen(command, stdout=log, stderr=log) for command in commands
            ]

    def close(self) -> None:
        """End both."""
        for process in self._processes:
            process.kill()
            process.wait()

    def ask(self, path: str, **query: str) -> Any:  # noqa: ANN401  the API's JSON
        """Ask the HTTP API; gives the data of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
            answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "success", (query, answer, self._log.read_text()[-2000:])
        return answer["data"]

    def values(self, expression: str) -> list[float]:
        """Give what an expression is now, of all its series."""
        result = self.ask("query", query=expression)["result"]
        return [float(series["value"][1]) for series in result]

    def knows(self, expression: str) -> bool:
        """Return whether it answers, and has data for an expression."""
        assert all(process.poll() is None for process in self._processes), self._log.read_text()
        try:
            return bool(self.values(expression))
        except (ConnectionError, json.JSONDecodeError):
            return False  # it is still starting

    def alerts(self) -> set[str]:
        """Give the names of the alerts that are pending or firing."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"]}


@contextlib.contextmanager
def prometheus(directory: Path) -> Iterator[Prometheus]:
    """Run both for a while."""
    opened = Prometheus(directory)
    try:
        yield opened
    finally:
        opened.close()


def test_from_the_service_to_the_dashboard(lab: Lab, tmp_path: Path) -> None:
    """Four guests on one pCPU: the pins, the gap and the loads arrive, and each panel has data.

    Then libvirtd goes: the alert that says so waits for its five minutes.
    """
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with prometheus(tmp_path) as watching:
        variables = {
            "VCPUSCHED_METRICS_FILE": str(watching.metrics / "vcpusched.prom"),
            "VCPUSCHED_METRICS_PER_VCPU": "true",
        }
        with running(lab, "1", **variables) as service:
            service.wait("a plan", lambda: service.pins > 0)
            service.wait(
                "the pins in Prometheus",
                lambda: watching.knows('vcpusched_pin_changes_total{reason="balance"} > 0'),
            )
            service.wait_cycles(5)
            assert watching.values("vcpusched_connected") == [1]
            assert watching.values("vcpusched_domains") == [4]
            assert len(watching.values("vcpusched_pcpu_load_ratio")) == 2
            assert max(watching.values("vcpusched_gap_ratio")) < 1
            assert not watching.alerts() & {"VcpuschedSilent", "VcpuschedCannotReadHost"}
            for panel in json.loads(DASHBOARD.read_text())["panels"]:
                for target in panel.get("targets", []):
                    text = target["expr"]
                    for variable, value in FILLED_IN.items():
                        text = text.replace(variable, value)
                    found = watching.values(text)
                    assert found or panel["title"] in EMPTY_HERE, (panel["title"], text)
            lab.stop_daemon()
            wait_for("the alert", lambda: "VcpuschedCannotReadHost" in watching.alerts())
            assert watching.values("vcpusched_connected") == [0]
