"""Which unit of systemd's we are, and whether systemd is about to start it again.

Rule: asks systemd and reads its answer, nothing else.

A service that is restarted gets the same SIGTERM as one that is stopped. The difference is in the
job that systemd has for the unit meanwhile: one of type "restart" until the old process has ended,
when it becomes a "start" (job.c: JOB_RESTART runs unit_stop first).
"""

import subprocess
from pathlib import Path
from typing import Final

OWN_CGROUP: Final = Path("/proc/self/cgroup")
PATIENCE_S: Final = 3.0


def own_unit(cgroups: str) -> str | None:
    """Give the system service that a process belongs to, by its /proc/PID/cgroup, if it does."""
    for line in cgroups.splitlines():
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = path.strip("/").split("/")
        # It may have been put into any slice but the users'; ".." is another machine's view.
        is_systemds = controllers in {"", "name=systemd"} and parts[0] not in {"user.slice", ".."}
        if is_systemds and parts[-1].endswith(".service"):
            return parts[-1]
    return None


def is_restart(jobs: str, unit: str) -> bool:
    """Tell whether a unit has a restart job, by what `systemctl list-jobs` prints of it."""
    rows = [line.split() for line in jobs.splitlines()]
    return any(
        len(row) >= 3 and row[1] == unit and row[2] in {"restart", "try-restart"}  # noqa: PLR2004  JOB UNIT TYPE
        for row in rows
    )


def is_restarting() -> bool:
    """Ask systemd whether our unit is being restarted; no when that cannot be known."""
    try:
        unit = own_unit(OWN_CGROUP.read_text(encoding="utf-8"))
        if unit is None:
            return False
        asked = ("systemctl", "list-jobs", "--no-legend", "--no-pager", "--full", unit)
        done = subprocess.run(  # noqa: S603  our own words
            asked, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return is_restart(done.stdout, unit)
