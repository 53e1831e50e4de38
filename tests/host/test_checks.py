"""What works against the service on a host, from files as hosts have them."""

from pathlib import Path

import pytest
from program import vcpusched

from vcpusched.host import checks

QUIET = {
    "proc/1/comm": "systemd\n",
    "proc/1/cmdline": "/sbin/init\0",
    "proc/self/mounts": "proc /proc proc rw,nosuid,relatime 0 0\n",
    "proc/sys/kernel/numa_balancing": "0\n",
    "sys/devices/system/node/online": "0-1\n",
    "sys/devices/system/cpu/online": "0-7\n",
    "sys/fs/cgroup/machine.slice/cpuset.cpus.effective": "0-7\n",
}
OPTION = "--collector.textfile.directory"
METRICS = "/var/lib/metrics/vcpusched.prom"


def found(root: Path, metrics_file: str = "", **changed: str) -> list[str]:
    """Return what is found on a host of these files."""
    for name, text in {**QUIET, **changed}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(checks.find(metrics_file, root))


def test_nothing_on_a_host_as_it_should_be(tmp_path: Path) -> None:
    """Nor where nothing can be read."""
    assert found(tmp_path) == []
    assert list(checks.find("", tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("name", "text", "begins", "has"),
    [
        ("proc/1/comm", "numad\n", "numad is running", "stop one"),
        ("proc/sys/kernel/numa_balancing", "1\n", "kernel.numa_balancing is on", "=0"),
        (
            "sys/fs/cgroup/machine.slice/cpuset.cpus.effective",
            "0-3,5\n",
            "the cpuset of machine.slice keeps guests off pCPUs 4,6-7:",
            "AllowedCPUs=0-7",
        ),
        (
            "sys/fs/cgroup/cpuset/machine.slice/cpuset.cpus",
            "0-3,5\n",
            "the cpuset of machine.slice keeps guests off pCPUs 4,6-7:",
            "echo 0-7 >/sys/fs/cgroup/cpuset/machine.slice/cpuset.cpus,",
        ),
        (
            "proc/self/mounts",
            "sys /sys sysfs rw 0 0\nproc /proc proc rw,hidepid=invisible 0 0\n",
            "/proc is mounted with hidepid=invisible",
            "through libvirt",
        ),
    ],
)
def test_each_thing_is_a_line(tmp_path: Path, name: str, text: str, begins: str, has: str) -> None:
    """With what to do."""
    (line,) = found(tmp_path, **{name: text})
    assert line.startswith(begins)
    assert has in line


def test_one_node_needs_no_balancing_of_its_own(tmp_path: Path) -> None:
    """The kernel's balancing between nodes does nothing there."""
    files = {"proc/sys/kernel/numa_balancing": "1\n", "sys/devices/system/node/online": "0\n"}
    assert found(tmp_path, **files) == []


@pytest.mark.parametrize(("profile", "count"), [("virtual-host", 0), ("cpu-partitioning", 1)])
def test_tuned_only_with_a_profile_that_pins(tmp_path: Path, profile: str, count: int) -> None:
    """It is on many hosts; only some of its profiles move threads."""
    files = {"proc/1/comm": "tuned\n", "etc/tuned/active_profile": f"{profile}\n"}
    assert len(found(tmp_path, **files)) == count
    assert len(list(checks.rivals(tmp_path))) == count


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/sbin/init\0", "no node_exporter runs here"),
        (f"/usr/bin/node_exporter\0{OPTION}=/var/lib/metrics\0", ""),
        (f"/usr/bin/node_exporter\0{OPTION}\0/var/lib/metrics/\0", ""),
        (
            "/usr/bin/prometheus-node-exporter\0--web.listen-address=:9100\0",
            (
                f"node_exporter reads {checks.TEXTFILES}; write it there, or start that with"
                f" {OPTION}=/var/lib/metrics"
            ),
        ),
        (
            "/usr/local/bin/node_exporter\0--web.listen-address=:9100\0",
            f"node_exporter reads no files; start it with {OPTION}=/var/lib/metrics",
        ),
    ],
)
def test_a_metrics_file_that_nobody_reads(tmp_path: Path, command: str, why: str) -> None:
    """As the command line of node_exporter says."""
    lines = found(tmp_path, METRICS, **{"proc/1/cmdline": command})
    assert lines == ([f"metrics_file is read by nobody: {why}"] if why else [])


def test_only_debians_reads_files_without_being_told(tmp_path: Path) -> None:
    """The program as its makers give it reads none then, also where Debian's would."""
    file = f"{checks.TEXTFILES}/vcpusched.prom"
    debians = found(tmp_path, file, **{"proc/1/cmdline": "/usr/bin/prometheus-node-exporter\0"})
    assert debians == []
    (line,) = found(tmp_path, file, **{"proc/1/cmdline": "/usr/bin/node_exporter\0"})
    assert line.endswith(f"start it with {OPTION}={checks.TEXTFILES}")


def test_check_config_says_it_and_succeeds(tmp_path: Path) -> None:
    """The exit status stays that of the configuration."""
    config = tmp_path / "new.toml"
    config.write_text(f'metrics_file = "{METRICS}"\n')
    done = vcpusched("check-config", "--config", str(config))
    assert done.returncode == 0
    assert "\nThis host: metrics_file is read by nobody: " in done.stdout
