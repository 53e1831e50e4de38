"""Whether systemd is about to restart our unit, as the kernel and systemd say it."""

import pytest

from vcpusched.service.systemd import is_restart, is_restarting

RESTART = "812 vcpusched.service restart running\n"
OURS = "0::/system.slice/vcpusched.service\n"


@pytest.mark.parametrize(
    ("cgroups", "restarts"),
    [
        (OURS, True),
        ("12:cpu:/\n1:name=systemd:/system.slice/vcpusched.service\n0::/\n", True),
        ("0::/machine.slice/vcpusched.service", True),
        ("9:name=systemd:/\n0::/system.slice/vcpusched.service", True),
        ("0::/system.slice/system-getty.slice/getty@tty1.service", False),
        ("0::/user.slice/user-0.slice/session-3.scope\n", False),
        ("0::/\n", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_own_unit(cgroups: str, restarts: object) -> None:
    """In both kinds of control groups, and in any slice."""
    assert is_restart(RESTART, cgroups) == restarts


@pytest.mark.parametrize(
    ("jobs", "restarts"),
    [
        (RESTART, True),
        ("812 vcpusched.service try-restart waiting\n", True),
        ("811 libvirtd.service stop running\n812 vcpusched.service restart waiting\n", True),
        ("812 vcpusched.service stop    running\n", False),
        ("812 vcpusched.service start running\n", False),
        ("812 libvirtd.service restart running\n813 vcpusched.service stop running\n", False),
        ("No jobs running.\n", False),
        ("", False),
    ],
)
def test_jobs(jobs: str, restarts: object) -> None:
    """What `systemctl list-jobs --no-legend` prints while a unit is restarted, and stopped."""
    assert is_restart(jobs, OURS) == restarts


def test_what_is_no_service_is_not_restarted() -> None:
    """These tests are none."""
    assert not is_restarting()
