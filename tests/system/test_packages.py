"""The packages: built, judged by the distributions' own tools, and installed into fresh Debians."""

import functools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from container import Container
from fresh import Fresh, run
from image import RELEASES, TOP, Image
from unit import entries, said, shown, wait_for

from vcpusched import __version__
from vcpusched.report.messages import MESSAGE_ID_PIN

NEWER: Final = "99.0"
ANSIBLE: Final = "/opt/ansible"
FOR_TESTS: Final = ("python3-apt", "sasl2-bin", "libsasl2-modules")
"""What Ansible's role needs on a host, and what has libvirt ask for a password."""
CONFIGURATION: Final = "/etc/vcpusched/vcpusched.toml"

BOOKS: Final = (
    # dpkg's and systemd's own.
    r"var/lib/dpkg(/.*)?|var/log/dpkg\.log|var/lib/systemd/catalog/database",
    # The system user stays.
    r"etc/(passwd|group|shadow|gshadow)-?|etc/\.pwd\.lock",
)
"""What may be otherwise after a purge, as patterns of paths."""


@pytest.fixture(scope="module")
def newer(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the .deb as if its version were a newer one."""
    directory = tmp_path_factory.mktemp("newer")
    run("dpkg-deb", "--raw-extract", str(deb), str(directory / "tree"))
    control = directory / "tree" / "DEBIAN" / "control"
    control.write_text(control.read_text().replace(f"Version: {__version__}", f"Version: {NEWER}"))
    made = directory / f"vcpusched_{NEWER}_amd64.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(directory / "tree"), str(made))
    return made


@pytest.fixture(scope="module")
def debian(
    deb: Path, newer: Path, progress: Callable[[str], None]
) -> Iterator[Callable[[str], Fresh]]:
    """Give a function that gives a Debian with what the .deb depends on, before it is installed."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp") as directory:

        @functools.cache
        def laid_out(release: str) -> Fresh:
            progress(f"laying out a Debian {release} to install packages into")
            made = Fresh(Path(directory) / release)
            made.build(release, [*dependencies(deb), *FOR_TESTS])
            shutil.copy(deb, made.root / "old.deb")
            shutil.copy(newer, made.root / "new.deb")
            return made

        yield laid_out


@pytest.fixture(scope="module", params=RELEASES)
def fresh(request: pytest.FixtureRequest, debian: Callable[[str], Fresh]) -> Fresh:
    """Give a Debian of each release."""
    return debian(request.param)


def dependencies(deb: Path) -> list[str]:
    """Name the packages that a .deb depends on: of alternatives the first."""
    text = run("dpkg-deb", "--field", str(deb), "Depends")
    return sorted({re.split(r"[ |(:]", part.strip())[0] for part in text.split(",")})


def test_the_deb_is_clean(deb: Path) -> None:
    """Lintian finds nothing but what the overrides explain."""
    said = run(
        *("lintian", "--allow-root", "--info", "--display-info", "--pedantic", "--show-overrides"),
        str(deb),
    )
    assert [line for line in said.splitlines() if re.match("[EWIP]: ", line)] == []
    assert {line.split()[2] for line in said.splitlines() if line.startswith("O: ")} == {
        "bash-term-in-posix-shell",
        "extra-license-file",
        "hardening-no-fortify-functions",
        "package-contains-documentation-outside-usr-share-doc",
        "package-supports-alternative-init-but-no-init.d-script",
        "repeated-path-segment",
    }


def test_the_spec_is_sound(built: Path) -> None:
    """Rpm reads it, and rpmlint finds nothing but what its filters explain."""
    spec = built / "vcpusched.spec"
    parsed = run("rpmspec", "--parse", str(spec))
    assert f"Source0:        vcpusched-{__version__}.tar.gz" in parsed
    filters = TOP / "packaging" / "vcpusched.rpmlintrc"
    said = run("rpmlint", "--strict", f"--rpmlintrc={filters}", str(spec))
    assert "1 specfiles checked; 0 errors, 0 warnings" in said


@pytest.mark.parametrize("suffix", ["-py3-none-any.whl", ".tar.gz"])
def test_pip_installs_it(built: Path, tmp_path: Path, suffix: str) -> None:
    """Wheel and sdist bring the program, beside the distribution's bindings."""
    run(sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path))
    package = built / f"vcpusched-{__version__}{suffix}"
    run(str(tmp_path / "bin/pip"), "install", "--quiet", str(package))
    assert run(str(tmp_path / "bin/vcpusched"), "--version") == f"vcpusched {__version__}\n"
    run(
        str(tmp_path / "bin/python"),
        "-c",
        "import vcpusched.service.daemon, vcpusched.host.libvirt_host",
    )


def test_the_sdist_has_what_an_rpm_needs(built: Path) -> None:
    """Each file that the spec installs from the tarball is in it."""
    named = re.findall(
        r"packaging/[\w.-]+", (built / "vcpusched.spec").read_text().partition("%prep")[2]
    )
    listed = run("tar", "--list", "--file", str(built / f"vcpusched-{__version__}.tar.gz"))
    assert len(named) > 8
    assert {f"vcpusched-{__version__}/{name}" for name in named} <= set(listed.split())


def test_the_deb_comes_and_goes(fresh: Fresh) -> None:
    """Installing starts nothing; an upgrade keeps what was edited; a purge leaves but the user."""
    before = fresh.files()
    fresh.say("dpkg", "--install", "/old.deb")
    assert fresh.say("vcpusched", "--version") == f"vcpusched {__version__}\n"
    assert "dry_run            false" in fresh.say("vcpusched", "check-config")
    assert "is not running" in fresh.refuse(
        "setpriv", "--reuid=65534", "--clear-groups", "vcpusched", "status"
    )
    assert fresh.refuse("systemctl", "is-enabled", "vcpusched") == "disabled\n"
    assert "/run/vcpusched:/usr/sbin/nologin" in fresh.say("getent", "passwd", "vcpusched")
    # The service may not write there: it would compile all anew at each start.
    programs = fresh.root / "usr/lib/vcpusched"
    assert len([*programs.rglob("*.py")]) == len([*programs.rglob("*.pyc")]) > 100
    installed = fresh.files().keys() - before.keys()
    for name in (
        "etc/libvirt/hooks/qemu.d/vcpusched",
        "etc/vcpusched/conf.d",
        "usr/lib/systemd/catalog/vcpusched.catalog",
        "usr/lib/systemd/system/vcpusched.service",
        "usr/lib/sysusers.d/vcpusched.conf",
        "usr/share/bash-completion/completions/vcpusched",
        "usr/share/zsh/vendor-completions/_vcpusched",
        "usr/share/polkit-1/rules.d/60-vcpusched.rules",
        "usr/share/man/man5/vcpusched.toml.5.gz",
        "usr/share/man/man7/vcpusched-metrics.7.gz",
        "usr/share/man/man7/vcpusched-planner.7.gz",
        "usr/share/man/man8/vcpusched.8.gz",
    ):
        assert name in installed
    assert not [name for name in installed if re.search("python3.*-packages", name)]

    configuration = fresh.root / CONFIGURATION.lstrip("/")
    edited = configuration.read_text() + "dry_run = true\n"
    configuration.write_text(edited)
    fresh.say("dpkg", "--install", "/new.deb")
    assert NEWER in fresh.say("dpkg-query", "--show", "vcpusched")
    assert configuration.read_text() == edited
    assert CONFIGURATION in fresh.say("vcpusched", "check-config")

    # There is no libvirtd to be asked, and no ledger either.
    assert "no ledger names any" in fresh.say("dpkg", "--remove", "vcpusched")
    assert configuration.read_text() == edited
    assert not programs.exists()
    (configuration.parent / "conf.d").mkdir(exist_ok=True)
    (configuration.parent / "conf.d" / "local.toml").touch()
    fresh.say("dpkg", "--purge", "vcpusched")
    after = fresh.files()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name for name in changed if not re.fullmatch("|".join(BOOKS), name)} == set()


@pytest.mark.parametrize("broken", ["libvirt", "Python"])
def test_removing_works_whatever_is_broken(fresh: Fresh, broken: str) -> None:
    """It says how to restore the pins that are left, and leaves the ledger, until a purge."""
    fresh.say("dpkg", "--install", "/old.deb")
    ledger = fresh.root / "run/vcpusched/affinity.json"
    ledger.parent.mkdir(exist_ok=True)
    uuid = "00faba3f-1377-4523-9abb-9cf8e534c62e"
    pin = {"vcpu": 2, "run_ns": 1, "affinity": "1", "original": "0-3"}
    guest = {"uuid": uuid, "name": "g", "id": 1, "uri": "qemu:///system", "vcpus": [pin]}
    kept = json.dumps({"version": 1, "domains": [guest]}, separators=(",", ":"))
    ledger.write_text(kept)
    python = fresh.root / "usr/bin/python3"
    version = python.readlink()
    if broken == "Python":
        python.unlink()
        python.symlink_to("/bin/false")
    try:
        output = fresh.say("dpkg", "--remove", "vcpusched")
    finally:
        python.unlink()
        python.symlink_to(version)
    assert f'virsh --connect "qemu:///system" vcpupin {uuid} 2 0-3 --live\n' in output
    assert ledger.read_text() == kept
    assert not (fresh.root / "usr/lib/vcpusched").exists()
    fresh.say("dpkg", "--purge", "vcpusched")
    assert not ledger.parent.exists()


@pytest.fixture(scope="module")
def host(
    disk: Image,
    debian: Callable[[str], Fresh],
    deb: Path,
    newer: Path,
    progress: Callable[[str], None],
) -> Iterator[Container]:
    """Boot a container with Ansible and four guests on pCPU 0, without vcpusched."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp") as directory:
        progress(f"booting a container with Debian {disk.release}")
        booted = Container(Path(directory))
        booted.build(disk)
        root = Path(directory) / "root"
        # What the disk lacks for the .deb, the package index of a real host would give.
        for package in (debian(disk.release).root / "var/cache/apt/archives").glob("*.deb"):
            lists = root / "var/lib/dpkg/info" / package.name.partition("_")[0]
            if not any(Path(f"{lists}{suffix}").exists() for suffix in (".list", ":amd64.list")):
                shutil.copy(package, root / "root")
        shutil.copy(deb, root / "root/old")
        shutil.copy(newer, root / "root/new")
        run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"),
            *(f"--python-version={RELEASES[disk.release]}", f"--target={root / ANSIBLE[1:]}"),
            "ansible-core",
        )
        try:
            booted.boot()
            booted.say("bash", "-c", "dpkg --install /root/*.deb")
            booted.say(
                "bash", "-c", f"mv /root/old /root/{deb.name}; mv /root/new /root/{newer.name}"
            )
            for index in range(4):
                booted.add_guest(f"g{index}", 0.25)
            yield booted
        finally:
            booted.power_off()


def play(host: Container, **variables: object) -> str:
    """Run the role there, as on any host of a fleet; gives what Ansible printed."""
    host.write("/root/inventory", "[hypervisors]\nlocalhost\n")
    return host.say(
        *("env", f"PYTHONPATH={ANSIBLE}", "python3", "-m", "ansible", "playbook"),
        *("--inventory=/root/inventory", "--connection=local"),
        *("--extra-vars", json.dumps({"ansible_become": False, **variables})),
        "/src/contrib/ansible/fleet.yml",
        check=False,
    )


def places(host: Container) -> list[str]:
    """Give where each guest's vCPU is pinned, in rising order."""
    return sorted(pin_of(host, index) for index in range(4))


def pin_of(host: Container, index: int) -> str:
    """Give where a guest's vCPU is pinned."""
    return host.say("virsh", "vcpupin", f"g{index}", "--live").split()[-1]


def test_the_role_only_looks_at_first(host: Container, deb: Path) -> None:
    """It installs and starts; what it would do is reported, not done; again changes nothing."""
    settings = {"period": 1.0, "max_moves": 32}
    first = play(host, vcpusched_deb=f"/root/{deb.name}", vcpusched_settings=settings)
    assert "failed=0" in first, first
    assert "vcpusched is healthy" in first
    assert shown(host, "ActiveState") == "active"
    assert host.say("systemctl", "is-enabled", "vcpusched") == "enabled\n"
    wait_for("a plan", lambda: "Dry run: would make" in said(host))
    assert places(host) == ["0", "0", "0", "0"]
    again = play(host, vcpusched_deb=f"/root/{deb.name}", vcpusched_settings=settings)
    assert "changed=0" in again, again


def test_the_role_refuses_mistakes(host: Container) -> None:
    """A setting that is none changes nothing on the host, and the reason is reported."""
    output = play(host, vcpusched_settings={"period": 0.1})
    assert "period: 0.1 is not allowed" in output, output
    assert "period = 1.0" in host.say("cat", "/etc/vcpusched/conf.d/50-ansible.toml")


def test_the_role_has_it_act(host: Container) -> None:
    """Allowed to, the same process balances the guests."""
    pid = shown(host, "MainPID")
    output = play(host, vcpusched_dry_run=False, vcpusched_settings={"period": 1.0})
    assert "failed=0" in output, output
    wait_for("balanced", lambda: places(host) == ["0", "0", "1", "1"])
    assert shown(host, "MainPID") == pid


def test_an_upgrade_leaves_pins_and_knows_them(host: Container, newer: Path) -> None:
    """Another process, the same pins, none made anew; where each vCPU was is still known."""
    pid, pins = shown(host, "MainPID"), len(entries(host, MESSAGE_ID_PIN))
    host.say("dpkg", "--install", f"/root/{newer.name}")
    wait_for("the new one", lambda: "4 guests" in shown(host, "StatusText"))
    assert shown(host, "MainPID") != pid
    assert places(host) == ["0", "0", "1", "1"]
    assert len(entries(host, MESSAGE_ID_PIN)) == pins
    assert host.say("systemctl", "is-enabled", "vcpusched") == "enabled\n"


def test_a_libvirt_that_asks_for_a_password(host: Container) -> None:
    """As under oVirt: refused without one, and reported; with one in a file as the README says."""
    host.say("mkdir", "--parents", "/etc/sasl2")
    host.write(
        "/etc/sasl2/libvirt.conf",
        "mech_list: scram-sha-256\nsasldb_path: /etc/libvirt/passwd.db\n",
    )
    host.say("bash", "-c", "echo secret | saslpasswd2 -p -a libvirt vcpusched@ovirt")
    host.say("bash", "-c", "echo 'auth_unix_rw = \"sasl\"' >>/etc/libvirt/libvirtd.conf")
    host.say("systemctl", "restart", "libvirtd", "vcpusched")
    wait_for("refusal", lambda: "Failed to collect auth credentials" in shown(host, "StatusText"))
    host.write(
        "/etc/vcpusched/auth.conf",
        "[credentials-vcpusched]\nauthname=vcpusched@ovirt\npassword=secret\n\n"
        "[auth-libvirt-default]\ncredentials=vcpusched\n",
    )
    host.say("chown", "root:vcpusched", "/etc/vcpusched/auth.conf")
    host.say("chmod", "640", "/etc/vcpusched/auth.conf")
    host.write(
        "/etc/vcpusched/conf.d/60-password.toml",
        'uri = "qemu:///system?authfile=/etc/vcpusched/auth.conf"\n',
    )
    host.say("systemctl", "restart", "vcpusched")
    wait_for("connected", lambda: "4 guests" in shown(host, "StatusText"))
    host.say("rm", "/etc/vcpusched/conf.d/60-password.toml")
    host.say("sed", "--in-place", "/^auth_unix_rw/d", "/etc/libvirt/libvirtd.conf")
    host.say("systemctl", "restart", "libvirtd", "vcpusched")
    wait_for("connected", lambda: "4 guests" in shown(host, "StatusText"))


def test_removing_beside_a_guest_that_hangs(host: Container) -> None:
    """The others are restored, and it can be by hand, as printed, once it does not hang."""
    assert places(host) == ["0", "0", "1", "1"]
    host.write("/etc/vcpusched/conf.d/60-leave.toml", 'on_stop = "leave"\n')
    host.say("systemctl", "reload", "vcpusched")
    hangs = next(n for n in range(4) if pin_of(host, n) == "1")
    pid = host.say("cat", f"/run/libvirt/qemu/g{hangs}.pid").strip()
    host.say("bash", "-c", f"kill -STOP {pid}")
    try:
        # Its monitor is asked, and does not answer.
        host.say("bash", "-c", f"virsh domblkstat g{hangs} fda >/dev/null 2>&1 & sleep 2")
        output = host.say("dpkg", "--remove", "vcpusched")
    finally:
        host.say("bash", "-c", f"kill -CONT {pid}")
    assert places(host) == ["0", "0", "0", "1"]
    (command,) = (line for line in output.splitlines() if line.startswith("virsh"))
    wait_for("its monitor", lambda: "running" in host.say("virsh", "domstate", f"g{hangs}"))
    host.say("bash", "-c", command)
    assert places(host) == ["0", "0", "0", "0"]


def test_the_role_removes_it(host: Container, newer: Path) -> None:
    """All affinities are restored; again changes nothing."""
    output = play(host, vcpusched_deb=f"/root/{newer.name}", vcpusched_dry_run=False)
    assert "failed=0" in output, output
    wait_for("balanced", lambda: places(host) == ["0", "0", "1", "1"])
    output = play(host, vcpusched_state="absent")
    assert "failed=0" in output, output
    assert places(host) == ["0", "0", "0", "0"]
    assert host.say("which", "vcpusched", check=False) == ""
    assert "50-ansible.toml" not in host.say("ls", "/etc/vcpusched/conf.d", check=False)
    assert "changed=0" in play(host, vcpusched_state="absent")


def test_removing_gives_affinities_back(host: Container, newer: Path) -> None:
    """Also where a stop leaves them, and without a ledger, by the marks; a purge leaves nothing."""
    host.say("dpkg", "--install", f"/root/{newer.name}")
    host.say("systemctl", "start", "vcpusched")
    wait_for("balanced", lambda: places(host) == ["0", "0", "1", "1"])
    host.say("systemctl", "stop", "vcpusched")
    host.say("rm", "/run/vcpusched/affinity.json")
    assert places(host) == ["0", "0", "1", "1"]
    host.say("dpkg", "--purge", "vcpusched")
    assert places(host) == ["0", "0", "0", "0"]
    assert host.say("virsh", "list", "--name").split() == ["g0", "g1", "g2", "g3"]
    left = host.say("find", "/usr", "/etc", "/run", "/var/lib/systemd", "-name", "*vcpusched*")
    assert left == ""


def test_the_role_is_sound(tmp_path: Path) -> None:
    """`ansible-lint` finds nothing to say, by its strictest profile."""
    run(sys.executable, "-m", "venv", str(tmp_path / "tools"))
    run(str(tmp_path / "tools/bin/pip"), "install", "--quiet", "ansible-lint")
    role = tmp_path / "ansible"
    shutil.copytree(TOP / "contrib" / "ansible", role)
    tools = ("env", f"PATH={tmp_path}/tools/bin:/usr/bin:/bin", f"HOME={tmp_path}")
    syntax = ("ansible-playbook", "--syntax-check", "--inventory=localhost,", "fleet.yml")
    run(*tools, *syntax, directory=role)
    run(*tools, "ansible-lint", "--offline", "--profile=production", directory=role)
