"""What is read from /proc, /sys and cgroups, on files like the kernel's and on this host."""

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from vcpusched.host.cgroups import Limits, limits, quota_counters, throttled_ns, usual_shares
from vcpusched.host.cpus import busy, capacities, isolated, tickless
from vcpusched.host.files import OpenFile
from vcpusched.model import ALL_CPUS, PPM, CpuSet


def write(root: Path, **files: str) -> None:
    """Lay out files; in their names "__" stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_quota_of_a_vcpus_own_cgroup_is_reported(tmp_path: Path) -> None:
    """25 ms of every 100 ms; held back for 2 ms so far. Version 2 counts in us, version 1 in ns."""
    second, first = tmp_path / "second", tmp_path / "first"
    here = "sys__fs__cgroup__m__vcpu0__"
    write(
        second,
        **{
            here + "cpu.max": "25000 100000\n",
            here + "cpu.stat": "usage_usec 9\nthrottled_usec 2000\n",
            "sys__fs__cgroup__m__cpu.max": "max 100000\n",
        },
    )
    assert throttled_ns(quota_counters("0::/m/vcpu0\n", second)) == 2_000_000
    here = "sys__fs__cgroup__cpu__m__vcpu0__"
    write(
        first,
        **{
            here + "cpu.cfs_quota_us": "25000\n",
            here + "cpu.cfs_period_us": "100000\n",
            here + "cpu.stat": "nr_periods 1\nthrottled_time 2000000\n",
            "sys__fs__cgroup__cpu__m__cpu.cfs_quota_us": "-1\n",
            "sys__fs__cgroup__cpu__m__cpu.cfs_period_us": "100000\n",
        },
    )
    groups = "4:memory:/x\n3:cpu,cpuacct:/m/vcpu0\n0::/\n"
    assert throttled_ns(quota_counters(groups, first)) == 2_000_000


def test_of_a_quota_further_up_nothing_can_be_known(tmp_path: Path) -> None:
    """Which of its threads the whole guest's quota held back nobody says: so no wait is given."""
    above, here = "sys__fs__cgroup__m__", "sys__fs__cgroup__m__vcpu0__"
    write(
        tmp_path,
        **{
            here + "cpu.max": "max 100000\n",
            above + "cpu.max": "50000 100000\n",
            above + "cpu.stat": "throttled_usec 0\n",
        },
    )
    counters = quota_counters("0::/m/vcpu0\n", tmp_path)
    assert (counters, throttled_ns(counters)) == (None, None)


def test_without_a_quota_there_is_none(tmp_path: Path) -> None:
    """Neither at the top, nor in groups without the controller, nor where it says max."""
    write(tmp_path, **{"sys__fs__cgroup__m__vcpu0__cpu.max": "max 100000\n"})
    for path in ("/", "/m", "/m/vcpu0"):
        assert throttled_ns(quota_counters(f"0::{path}\n", tmp_path)) == 0


SCOPE_2 = "0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope"
HERE_2 = "sys__fs__cgroup__machine.slice__"
WEB_2 = HERE_2 + "machine-qemu\\x2d1\\x2dweb.scope__"
ONLINE = {"sys__devices__system__cpu__online": "0-7\n"}


def test_the_limits_of_a_guest_in_version_2(tmp_path: Path) -> None:
    """Those of its scope, above which libvirt's own groups are, into which pins are written."""
    write(
        tmp_path,
        **ONLINE,
        **{
            "sys__fs__cgroup__cpuset.cpus.effective": "0-7\n",
            HERE_2 + "cpuset.cpus.effective": "1-7\n",
            HERE_2 + "cpu.weight": "50\n",
            WEB_2 + "cpuset.cpus.effective": "2-7\n",
            WEB_2 + "cpu.weight": "300\n",
            WEB_2 + "libvirt__cpu.weight": "100\n",
            WEB_2 + "libvirt__cpu.max": "50000 100000\n",
            WEB_2 + "libvirt__cpu.stat": "throttled_usec 0\n",
            WEB_2 + "libvirt__emulator__cpuset.cpus.effective": "3\n",
            WEB_2 + "libvirt__emulator__cpu.max": "1000 100000\n",
            WEB_2 + "libvirt__emulator__cpu.stat": "throttled_usec 0\n",
        },
    )
    for tail in ("/libvirt/emulator", "/libvirt/vcpu12", "/libvirt/iothread1"):
        found = limits(f"{SCOPE_2}{tail}\n", tmp_path)
        assert found == Limits(CpuSet.parse("2-7"), 300, PPM // 2)
    # Where the process is in no group of libvirt's, the group is not the guest's.
    assert limits(SCOPE_2, tmp_path) == Limits(CpuSet.parse("2-7"), None, PPM // 2)
    # Without the controller in the scope the nearest group above it counts.
    other = "0::/machine.slice/other.scope/libvirt/emulator\n"
    assert limits(other, tmp_path) == Limits(CpuSet.parse("1-7"), None, PPM)
    assert limits("0::/elsewhere/x\n", tmp_path) == Limits()


def test_the_limits_of_a_guest_in_version_1(tmp_path: Path) -> None:
    """The effective cpuset where the kernel has it, else what is set."""
    cpuset, cpu = "sys__fs__cgroup__cpuset__machine__web__", "sys__fs__cgroup__cpu__machine__web__"
    files = {
        cpuset + "cpuset.cpus": "0-7\n",
        cpuset + "cpuset.effective_cpus": "0,2-7\n",
        cpuset + "emulator__cpuset.cpus": "3\n",
        cpu + "cpu.shares": "2048\n",
        cpu + "cpu.cfs_quota_us": "-1\n",
        cpu + "cpu.cfs_period_us": "100000\n",
    }
    write(tmp_path, **ONLINE, **files)
    groups = "9:cpuset:/machine/web/emulator\n4:cpu,cpuacct:/machine/web/emulator\n0::/x\n"
    assert limits(groups, tmp_path) == Limits(CpuSet.parse("0,2-7"), 2048)
    (tmp_path / "sys/fs/cgroup/cpuset/machine/web/cpuset.effective_cpus").unlink()
    write(tmp_path, **{cpuset + "cpuset.cpus": "4-5\n"})
    assert limits(groups, tmp_path).cpuset == CpuSet.parse("4-5")


@pytest.mark.parametrize("online", ["0-6", "1-6"])
def test_a_cpuset_of_all_that_is_online_bounds_nothing(tmp_path: Path, online: str) -> None:
    """Version 2 leaves out what is offline; when that comes back it is no other guest's."""
    write(
        tmp_path,
        sys__devices__system__cpu__online=online,
        **{WEB_2 + "cpuset.cpus.effective": "0-6\n"},
    )
    assert limits(f"{SCOPE_2}/libvirt/emulator\n", tmp_path).cpuset == ALL_CPUS


def test_weights(tmp_path: Path) -> None:
    """An idle group says 0 and has some; and what a group has to which nobody gave any."""
    write(tmp_path, **{WEB_2 + "cpu.weight": "0\n"})
    assert limits(f"{SCOPE_2}/libvirt/emulator\n", tmp_path).shares == 1
    assert usual_shares(tmp_path) == 1024
    write(tmp_path, **{"sys__fs__cgroup__cgroup.controllers": "cpu\n"})
    assert usual_shares(tmp_path) == 100


def test_lists_of_pcpus(tmp_path: Path) -> None:
    """Empty, absent, and the kernel's word for none are no pCPUs."""
    cpus = "sys__devices__system__cpu__"
    assert isolated(tmp_path) == tickless(tmp_path) == CpuSet()
    write(tmp_path, **{cpus + "isolated": "\n", cpus + "nohz_full": "(null)\n"})
    assert isolated(tmp_path) == tickless(tmp_path) == CpuSet()
    write(tmp_path, **{cpus + "isolated": "2-3,8\n", cpus + "nohz_full": "4\n"})
    assert (str(isolated(tmp_path)), str(tickless(tmp_path))) == ("2-3,8", "4")


CPU = "sys__devices__system__cpu__cpu"


def capacity_files(*capacities: object) -> dict[str, str]:
    """Name the files that say the capacities of pCPUs from 0 on."""
    return {f"{CPU}{cpu}__cpu_capacity": f"{said}\n" for cpu, said in enumerate(capacities)}


def frequency_files(*megahertz: int) -> dict[str, str]:
    """Name the files that say how fast pCPUs from 0 on can be clocked, which they do in kHz."""
    return {
        f"{CPU}{cpu}__cpufreq__cpuinfo_max_freq": f"{said * 1000}\n"
        for cpu, said in enumerate(megahertz)
    }


def core_types(core: str, atom: str, **others: str) -> dict[str, str]:
    """Name the files that list which pCPUs have the counters of which core type."""
    lists = {"core": core, "atom": atom, **others}
    return {f"sys__devices__cpu_{name}__cpus": f"{cpus}\n" for name, cpus in lists.items()}


def test_the_capacity_that_the_kernel_reckons(tmp_path: Path) -> None:
    """Of 1024, relative to the strongest pCPU asked about: 512 of 1024 is a half, of 512 all."""
    write(tmp_path, **capacity_files(512, 512, 1024, 256))
    assert capacities(CpuSet.parse("0-2"), tmp_path) == {0: PPM // 2, 1: PPM // 2, 2: PPM}
    assert capacities(CpuSet.parse("0,3"), tmp_path) == {0: PPM, 3: PPM // 2}


@pytest.mark.parametrize(
    "said", [(1024, 1024), (1024,), (1024, 0), (1024, -1), (1024, "some"), (1024, "9" * 5000)]
)
def test_no_difference_in_capacity(tmp_path: Path, said: tuple[object, ...]) -> None:
    """All the same, or not reported of every pCPU."""
    write(tmp_path, **capacity_files(*said))
    assert capacities(CpuSet.parse("0-1"), tmp_path) == {}


def test_without_anything_there_is_no_difference(tmp_path: Path) -> None:
    """Neither files nor pCPUs."""
    assert capacities(CpuSet.parse("0-3"), tmp_path) == capacities(CpuSet(), tmp_path) == {}


def test_the_capacity_of_hybrid_pcpus(tmp_path: Path) -> None:
    """Small ones 3.9 GHz beside 5.2: 3.9 / 5.2 x 0.8 = 0.6; with 2.6 GHz 0.4. Big ones are equal.

    That all have a capacity of 1024 is no news there: so it is wherever SMT is possible.
    """
    write(
        tmp_path,
        **capacity_files(*[1024] * 5),
        **core_types("0-1", "2-3", lowpower="4"),
        **frequency_files(5200, 5100, 3900, 3900, 2600),
    )
    assert capacities(CpuSet.parse("0-4"), tmp_path) == {
        0: PPM,
        1: PPM,
        2: 600_000,
        3: 600_000,
        4: 400_000,
    }
    assert capacities(CpuSet.parse("0-1"), tmp_path) == {}
    assert capacities(CpuSet.parse("2-3"), tmp_path) == {}


def test_the_kernels_own_reckoning_outranks_the_core_type(tmp_path: Path) -> None:
    """As without SMT since Linux 6.12: 615 of 1024."""
    write(tmp_path, **capacity_files(1024, 615), **core_types("0", "1"))
    assert capacities(CpuSet.parse("0-1"), tmp_path) == {0: PPM, 1: 615 * PPM // 1024}


def test_the_capacity_of_hybrid_pcpus_without_frequencies(tmp_path: Path) -> None:
    """Of either type is enough to be missing; then a small one is taken for 0.6 of a big one."""
    write(tmp_path, **core_types("0", "1"))
    assert capacities(CpuSet.parse("0-1"), tmp_path) == {0: PPM, 1: 600_000}
    write(tmp_path, **frequency_files(5200))
    assert capacities(CpuSet.parse("0-1"), tmp_path) == {0: PPM, 1: 600_000}


def test_a_capacity_is_above_0_and_at_most_all(tmp_path: Path) -> None:
    """Whatever frequencies are reported; and a pCPU of neither type counts as a big one."""
    write(tmp_path, **core_types("0", "1-2"), **frequency_files(1, 9_000_000))
    assert capacities(CpuSet.parse("0-3"), tmp_path) == {0: PPM, 1: PPM, 2: 600_000, 3: PPM}
    write(tmp_path, **frequency_files(9_000_000_000, 1, 1))
    assert capacities(CpuSet.parse("0-3"), tmp_path) == {0: PPM, 1: 1, 2: 1, 3: PPM}


def performance_files(*highest: int) -> dict[str, str]:
    """Name the files in which firmware says what pCPUs from 0 on can perform at best (CPPC)."""
    return {f"{CPU}{cpu}__acpi_cppc__highest_perf": f"{said}\n" for cpu, said in enumerate(highest)}


def test_weaker_cores_of_one_type(tmp_path: Path) -> None:
    """Four of 5.16 GHz and four dense ones of 3.31, of which firmware says 208 and 135."""
    write(
        tmp_path,
        **frequency_files(*[5160] * 4, *[3310] * 4),
        **performance_files(*[208] * 4, *[135] * 4),
    )
    found = capacities(CpuSet.parse("0-7"), tmp_path)
    weak_ppm = 3310 * PPM // 5160
    assert found == dict.fromkeys(range(4), PPM) | dict.fromkeys(range(4, 8), weak_ppm)
    assert capacities(CpuSet.parse("4-7"), tmp_path) == {}


@pytest.mark.parametrize(
    ("megahertz", "highest"),
    [
        ((5700, 5700, 5700, 5700), (236, 231, 166, 196)),  # preferred cores
        ((5700, 5200, 4700, 4000), (255, 255, 255, 255)),  # turbo bins, not reported by firmware
        ((5700, 5500, 5200, 4900), (255, 246, 235, 218)),  # turbo bins that firmware reports
        ((5160, 5160, 3310, 3310), (208, 208, 135)),  # not reported of every pCPU
        ((5160, 5160, 3310), (208, 208, 135, 135)),
        ((5160, 5160, 3310, 0), (208, 208, 135, 135)),
    ],
)
def test_preferred_cores_and_turbo_bins_are_equal(
    tmp_path: Path, megahertz: tuple[int, ...], highest: tuple[int, ...]
) -> None:
    """Only a core that is reported slower, and to do less, by a seventh is weaker."""
    write(tmp_path, **frequency_files(*megahertz), **performance_files(*highest))
    assert capacities(CpuSet.parse("0-3"), tmp_path) == {}


def test_this_hosts_own_capacities() -> None:
    """Either nothing, or one for each of its pCPUs, the strongest with all of it."""
    cpus = CpuSet.of(os.sched_getaffinity(0))
    found = capacities(cpus)
    assert not found or (set(found) == set(cpus) and max(found.values()) == PPM)
    assert all(capacity_ppm > 0 for capacity_ppm in found.values())


def test_busy_adds_all_but_idle_and_guest_time(tmp_path: Path) -> None:
    """Of user nice system [idle iowait] irq softirq steal [guest guest_nice], in ticks."""
    assert busy(tmp_path) is None
    write(
        tmp_path, proc__stat="cpu  9 9 9 9 9 9 9 9 9 9\ncpu3 1 2 4 100 100 8 16 32 50 50\nintr 5\n"
    )
    seen = busy(tmp_path)
    assert seen is not None
    assert seen.by_cpu_ns == {3: 63 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")}


def test_this_hosts_own_pcpus_are_never_busier_than_time_passes() -> None:
    """On the real /proc/stat; two ticks of grace for each reading."""
    before = busy()
    time.sleep(0.5)
    after = busy()
    assert before is not None
    assert after is not None
    assert before.by_cpu_ns.keys() >= set(os.sched_getaffinity(0))
    for cpu, run_ns in after.by_cpu_ns.items():
        assert 0 <= run_ns - before.by_cpu_ns[cpu] <= after.at_ns - before.at_ns + 40_000_000


def test_an_open_file_of_a_thread_says_nothing_once_that_has_ended() -> None:
    """And what it has by then, as long as it runs."""
    with subprocess.Popen(["sleep", "20"]) as process:
        counters = OpenFile(f"/proc/{process.pid}/task/{process.pid}/schedstat")
        before = len((counters.read() or b"").split())
        process.kill()
    assert (before, counters.read()) == (3, None)


def test_open_files_leave_descriptors_to_others(tmp_path: Path) -> None:
    """With few descriptors files are opened for each reading, and read all the same."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = tmp_path / "counters"
    path.write_text("1 2 3\n")
    taken = os.open(path, os.O_RDONLY)  # so at least as many are in use
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 2, limits[1]))
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  that opens it itself
        files = [OpenFile(str(path)) for _ in range(taken)]
        assert len(os.listdir("/proc/self/fd")) <= max(before, taken // 2 + 2)  # noqa: PTH208
        path.write_text("2 3 4\n")
        assert [file.read() for file in files] == [b"2 3 4\n"] * taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(taken)
    assert OpenFile(str(tmp_path / "none")).read() is None
