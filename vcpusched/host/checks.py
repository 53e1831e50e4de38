"""Finds what on this host works against the service or its settings.

Rule: hints, each a sentence with what to do. Nothing depends on them, and what cannot be read gives
none. `root` is where the files of the host are.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vcpusched.host.files import read_cpus, read_number, read_text

ROOT: Final = Path("/")

CPUSETS: Final = {
    "machine.slice/cpuset.cpus.effective": "systemctl set-property machine.slice AllowedCPUs={}",
    "cpuset/machine.slice/cpuset.cpus": (
        "echo {} >/sys/fs/cgroup/cpuset/machine.slice/cpuset.cpus, for guests started after that"
    ),
}
"""Where the pCPUs of all guests together are listed, under /sys/fs/cgroup, and how others are put
there: v2, then v1, where systemd sets no cpuset."""

TEXTFILES: Final = "/var/lib/prometheus/node-exporter"
"""Where Debian's node_exporter reads metrics when it is not told; others read none then."""

_TUNED_PINNING: Final = ("cpu-partitioning", "realtime")

_HIDDEN: Final = re.compile(r"^\S+ /proc proc \S*\bhidepid=(?!0|off)(\w+)", re.MULTILINE)
_DEBIANS: Final = re.compile(r"[^\0]*prometheus-node-exporter\0")
_READS: Final = re.compile(r"textfile\.directory[=\0]([^\0]+)")


def rivals(root: Path = ROOT) -> Iterator[str]:
    """Yield a sentence for each running program that pins vCPUs too, in a fixed order."""
    running = {(read_text(path) or "").strip() for path in root.glob("proc/[0-9]*/comm")}
    if "numad" in running:
        yield "numad is running and binds guests too; the two will undo each other's work: stop one"
    profile = (read_text(root / "etc/tuned/active_profile") or "").split()
    if "tuned" in running and any(word.startswith(_TUNED_PINNING) for word in profile):
        yield (
            "tuned runs with a profile that moves threads too; blacklist the guests there, or"
            " stop one"
        )


def find(metrics_file: str, root: Path = ROOT) -> Iterator[str]:
    """Yield a sentence for each thing found, rivals first, in a fixed order."""
    proc, system = root / "proc", root / "sys"
    yield from rivals(root)
    if (
        read_number(proc / "sys/kernel/numa_balancing")
        and len(read_cpus(system / "devices/system/node/online")) > 1
    ):
        yield (
            "kernel.numa_balancing is on: the kernel moves memory and floating vCPUs between nodes"
            " too, so loads change by themselves; sysctl kernel.numa_balancing=0 ends that"
        )
    online = read_cpus(system / "devices/system/cpu/online")
    for path, command in CPUSETS.items():
        allowed = read_cpus(system / "fs/cgroup" / path)
        if allowed and (left := online - allowed):
            yield (
                f"the cpuset of machine.slice keeps guests off pCPUs {left}: if that is not meant,"
                f" {command.format(online)}"
            )
    if hidden := _HIDDEN.search(read_text(proc / "self/mounts") or ""):
        yield (
            f"/proc is mounted with hidepid={hidden[1]}: guests are read through libvirt, which"
            " costs more and does not say how long vCPUs wait; mount it without"
        )
    if metrics_file and (why := _unread(str(Path(metrics_file).parent), proc)):
        yield f"metrics_file is read by nobody: {why}"


def _unread(directory: str, proc: Path) -> str:
    """Return why no node_exporter reads files in a directory; empty where one does."""
    commands = [read_text(one) or "" for one in proc.glob("[0-9]*/cmdline")]
    exporters = [one for one in commands if re.match(r"[^\0]*node[_-]exporter\0", one)]
    if not exporters:
        return "no node_exporter runs here"
    read = [
        one.rstrip("/")
        for command in exporters
        for one in _READS.findall(command) or [TEXTFILES] * bool(_DEBIANS.match(command))
    ]
    if directory in read:
        return ""
    option = f"--collector.textfile.directory={directory}"
    if not read:
        return f"node_exporter reads no files; start it with {option}"
    return f"node_exporter reads {read[0]}; write it there, or start that with {option}"
