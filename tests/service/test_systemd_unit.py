"""Which unit we are, and what systemd is about to do with it, as the kernel and systemd say it."""

import pytest

from vcpusched.service.systemd import is_restart, is_restarting, own_unit


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/vcpusched.service\n", "vcpusched.service"),
        (
            "12:cpu:/\n1:name=systemd:/system.slice/vcpusched.service\n0::/\n",
            "vcpusched.service",
        ),
        ("0::/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("0::/machine.slice/vcpusched.service", "vcpusched.service"),
        ("9:name=systemd:/\n0::/system.slice/vcpusched.service", "vcpusched.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", None),
        ("0::/../../system.slice/vcpusched.service", None),
        ("0::/\n", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_own_unit(cgroups: str, unit: str | None) -> None:
    """A system service, in both kinds of control groups; anything else is none."""
    assert own_unit(cgroups) == unit


@pytest.mark.parametrize(
    ("jobs", "restarts"),
    [
        ("812 vcpusched.service restart running\n", True),
        ("812 vcpusched.service try-restart waiting\n", True),
        ("812 vcpusched.service stop    running\n", False),
        ("812 vcpusched.service start running\n", False),
        ("812 libvirtd.service restart running\n813 vcpusched.service stop running\n", False),
        ("No jobs running.\n", False),
        ("", False),
    ],
)
def test_jobs(jobs: str, restarts: object) -> None:
    """What `systemctl list-jobs --no-legend` prints while a unit is restarted, and stopped."""
    assert is_restart(jobs, "vcpusched.service") == restarts


def test_what_is_no_service_is_not_restarted() -> None:
    """These tests are none."""
    assert not is_restarting()
