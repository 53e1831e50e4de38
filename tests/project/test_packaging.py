"""What is packaged agrees with the code and with the tools that will read it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vcpusched import __version__
from vcpusched.model import Cpu, CpuSet, DomainUuid, Host, HostCpu, Vcpu, VcpuId
from vcpusched.report import history, messages, snapshot, state_file
from vcpusched.service import daemon, exits
from vcpusched.settings import Settings

TOP = Path(__file__).parents[2]
PACKAGING = TOP / "packaging"
SCRIPTS = (
    "contrib/quickstart",
    "contrib/benchmark/run",
    "contrib/pictures/run",
    "tests/run",
    ".ci/run",
)
PACKAGING_SCRIPTS = ("packaging/install", "packaging/release")
PAGES = sorted(path.name for path in PACKAGING.glob("*.[1-8]"))
COMPLETION = PACKAGING / "vcpusched.bash"
VERBS = (
    "run",
    "plan",
    "snapshot",
    "status",
    "top",
    "history",
    "trial",
    "restore",
    "release",
    "pause",
    "resume",
    "check-config",
    "simulate",
)


MESSAGE_IDS = [value for name, value in vars(messages).items() if name.startswith("MESSAGE_ID")]


def run(*command: str, **options: object) -> str:
    """Run a tool that must succeed in silence or say what it has to say; gives its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return str(done.stdout + done.stderr)


@pytest.mark.full
def test_the_unit_is_right_for_systemd(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing to say; only the program's path is put in place."""
    unit = tmp_path / "vcpusched.service"
    program = Path(sys.executable).parent / "vcpusched"
    text = (PACKAGING / "vcpusched.service").read_text()
    assert "ExecStart=/usr/bin/vcpusched run\n" in text
    unit.write_text(text.replace("/usr/bin/vcpusched", str(program)))
    said = run("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(unit))
    assert [line for line in said.splitlines() if "vcpusched" in line] == []


@pytest.mark.full
def test_the_unit_is_hardened(tmp_path: Path) -> None:
    """The exposure that systemd itself makes out, of at most 10, is at most 1.0."""
    unit = tmp_path / "vcpusched.service"
    unit.write_text((PACKAGING / "vcpusched.service").read_text())
    said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for vcpusched.service: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= 1.0


def test_the_unit_and_the_code_agree() -> None:
    """No restart for mistakes that do not mend themselves; ordering only, after both libvirts."""
    unit = (PACKAGING / "vcpusched.service").read_text()
    assert f"RestartPreventExitStatus={exits.USAGE} {exits.BAD_CONFIGURATION}\n" in unit
    for name in ("libvirtd.socket", "virtqemud.socket", "libvirtd.service", "virtqemud.service"):
        assert re.search(rf"^After=.*\b{name}\b", unit, re.MULTILINE)
    # Stopped before guests are saved and libvirt ends; its files outlive it, and so do pins.
    assert re.search(r"^After=.*\blibvirt-guests\.service\b", unit, re.MULTILINE)
    assert "RuntimeDirectoryPreserve=yes\n" in unit
    limit_s = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert limit_s is not None
    assert int(limit_s[1]) > daemon.RESTORE_TIMEOUT_S
    assert not re.search(r"^(Requires|BindsTo|PartOf|Wants)=", unit, re.MULTILINE)


@pytest.mark.full
def test_the_catalog_explains_every_message(tmp_path: Path) -> None:
    """The journal takes the catalog in, and finds all messages in it by their IDs."""
    catalog = tmp_path / "usr/lib/systemd/catalog"
    catalog.mkdir(parents=True)
    text = (PACKAGING / "vcpusched.catalog").read_text()
    (catalog / "vcpusched.catalog").write_text(text)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    run("journalctl", f"--root={tmp_path}", "--update-catalog")
    for message_id in MESSAGE_IDS:
        shown = run("journalctl", f"--root={tmp_path}", "--dump-catalog", message_id)
        assert "Subject: " in shown
        assert "Defined-By: vcpusched" in shown


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES)
def test_the_man_pages_can_be_read(page: str) -> None:
    """`man` formats them without a warning, and within 80 columns."""
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(PACKAGING / page)],
        env={**os.environ, "MANWIDTH": "80"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stderr == ""
    assert "vcpusched" in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_the_man_pages_describe_everything() -> None:
    """Each exit status and message ID, with the version, and each page of the others."""
    texts = {page: (PACKAGING / page).read_text() for page in PAGES}
    statuses = {value for name, value in vars(exits).items() if name.isupper()}
    written = re.findall(r"^\.B (\d+)$", texts["vcpusched.8"], re.MULTILINE)
    assert set(map(int, written)) == statuses
    assert all(message_id in texts["vcpusched-metrics.7"] for message_id in MESSAGE_IDS)
    for page, text in texts.items():
        assert f'"vcpusched {__version__}"' in text
        seen = text.partition("\n.SH SEE ALSO\n")[2].replace("\\-", "-")
        others = {f"{name.rpartition('.')[0]} ({name[-1]})" for name in PAGES if name != page}
        assert others <= set(re.findall(r"^\.BR (.* \(\d\))", seen, re.MULTILINE)), page


def test_the_manual_describes_the_metrics_in_use() -> None:
    """Those of the alerts, the dashboard and the README."""
    users = ("contrib/prometheus/rules.yml", "contrib/grafana/vcpusched.json", "README.md")
    text = "".join((TOP / user).read_text() for user in users)
    used = set(re.findall(r"vcpusched_([a-z_]+?)(?:_bucket|_count|_sum)?\b", text))
    manual = (PACKAGING / "vcpusched-metrics.7").read_text()
    assert len(used) > 20
    assert used <= set(re.findall(r"\w+", manual))


def test_the_manual_describes_the_json() -> None:
    """Each key of a snapshot with all that one can have, of a history and of the state."""
    cpu = Cpu(0, node=0, core=0, cache=0, capacity_ppm=1, isolated=True, socket=0)
    vcpu = Vcpu(
        VcpuId(DomainUuid("u"), 1, 0),
        domain="d",
        load_ppm=1,
        cpus=CpuSet.of([0, 1]),
        allowed=CpuSet.of([0, 1]),
        on=0,
        fixed=True,
        why="why",
        memory_node=0,
        shares=1,
        quota_ppm=1,
        spread=True,
        wait_ppm=1,
    )
    host = Host((HostCpu(cpu),), (vcpu,), CpuSet.of([0]), {(0, 0): 10})
    record = history.JournalRecord(0.0, {})
    episode = history.Episode(history.Kind.PLAN, 0.0, 1, [record], 0, record, record)
    service = messages.Service(1, 0.0, Settings.model_validate({}))
    text = (PACKAGING / "vcpusched-metrics.7").read_text().replace(r"\(dq", '"')
    manual = set(re.findall(r"\w+", text))
    for value in (
        snapshot.host_as_json(host),
        history.as_json(history.History(0.0, 0.0, (episode,))),
        state_file.state_as_json(service, 0.0),
    ):
        assert set(re.findall(r'"(\w+)": ', json.dumps(value))) - {"0"} <= manual


def test_each_way_to_install_brings_every_page() -> None:
    """The Debian package, the RPM and the program for other hosts."""
    deb = (PACKAGING / "debian" / "vcpusched.manpages").read_text().split()
    assert deb == sorted(f"packaging/{page}" for page in PAGES)
    spec = (PACKAGING / "vcpusched.spec").read_text()
    for page in PAGES:
        assert f"packaging/{page} %{{buildroot}}%{{_mandir}}/man{page[-1]}/{page}\n" in spec
    installed = re.search(r"^pages=\((.*)\)$", (PACKAGING / "install").read_text(), re.MULTILINE)
    assert installed is not None
    assert sorted(installed[1].split()) == sorted(PAGES)


def test_an_upgrade_leaves_a_deleted_hook_deleted() -> None:
    """In the RPM only `missingok` does that; dpkg never brings a file of /etc back."""
    spec = (PACKAGING / "vcpusched.spec").read_text()
    hook = "%{_sysconfdir}/libvirt/hooks/qemu.d/vcpusched\n"
    assert f"\n%config(missingok) {hook}" in spec.partition("%files")[2]


def test_what_is_generated_is_what_the_code_says() -> None:
    """`packaging/generate` finds nothing to write anew: each text has one place."""
    run(sys.executable, str(PACKAGING / "generate"), "--check")


def test_the_readme_describes_everything() -> None:
    """Its two commands and each verb, in 250 lines; and the files that it links exist."""
    readme = (TOP / "README.md").read_text()
    assert "sudo contrib/quickstart" in readme
    assert "tests/run" in readme
    for verb in VERBS:
        assert f"`vcpusched {verb}" in readme, verb
    assert len(readme.splitlines()) <= 250


def test_documents_link_what_exists() -> None:
    """Files, and headings in them."""
    for document in [TOP / "README.md", *TOP.glob("[!.]*/**/*.md")]:
        for name, anchor in re.findall(
            r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document.read_text()
        ):
            target = document.parent / name if name else document
            assert target.exists(), (document, name)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", title.lower()) for title in titles]
                assert anchor in [title.replace(" ", "-") for title in anchors], (document, anchor)


def completed(*words: str, path: str = "") -> list[str]:
    """Return what bash offers for the last word of a command line."""
    script = """. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_vcpusched
        printf '%s\\n' "${COMPREPLY[@]}" """
    env = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    command = ("bash", "-c", script, "-", str(COMPLETION), "vcpusched", *words)
    return run(*command, env=env).splitlines()


def test_completion_offers_commands_options_and_files(tmp_path: Path) -> None:
    """A file where one is meant."""
    assert set(completed("")) == set(VERBS)
    assert set(completed("re")) == {"restore", "release", "resume"}
    assert "--exit-when-idle" in completed("run", "--e")
    assert set(completed("simulate", "--place", "r")) == {"random", "round-robin"}
    (tmp_path / "shop.toml").touch()
    for words in (("simulate",), ("simulate", "--trace"), ("plan", "--from"), ("run", "--config")):
        assert completed(*words, f"{tmp_path}/s") == [f"{tmp_path}/shop.toml"]


def test_completion_offers_guests_and_runs_no_name(tmp_path: Path) -> None:
    """Those that run, quoted: the name of a guest must not be run as a command by pressing Tab."""
    virsh, ran = tmp_path / "virsh", tmp_path / "ran"
    names = ("shop", f"s$(touch${{IFS}}{ran})", f"s`touch${{IFS}}{ran}` y", "mail")
    virsh.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(names) + "\nEND\n")
    virsh.chmod(0o755)
    for words in ("restore", "release mail", "plan --explain", "history --domain"):
        found = completed(*words.split(), "s", path=str(tmp_path))
        assert len(found) == 3, words
        assert found[0] == "shop"
        assert found[1].startswith("s\\$\\(touch"), words
        assert not ran.exists(), words


def test_the_version_has_one_place() -> None:
    """What repeats it says the same, and NEWS.md begins with it."""
    news = re.findall(r"^## (.*)$", (PACKAGING / "NEWS.md").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)", news[0])
    spec = (PACKAGING / "vcpusched.spec").read_text()
    assert re.findall(r"^Version: +(.*)$", spec, re.MULTILINE) == [__version__]
    (entry, *_) = re.findall(r"^\* .* - (.*)-1$", spec, re.MULTILINE)
    assert entry == __version__
    # The package's own changelog is made from NEWS.md.
    assert not (PACKAGING / "debian" / "changelog").exists()


def test_the_deb_brings_what_it_runs_on() -> None:
    """A compiled extension for each Python that it may be installed beside, and no others."""
    (built,) = re.findall(r"^PYTHONS=\((.*)\)$", (PACKAGING / "release").read_text(), re.MULTILINE)
    pythons = [int(version.removeprefix("3.")) for version in built.split()]
    control = (PACKAGING / "debian" / "control").read_text()
    assert f"python3 (>= 3.{pythons[0]}~)" in control
    assert f"python3 (<< 3.{pythons[-1] + 1}~)" in control
    assert pythons == list(range(pythons[0], pythons[-1] + 1))
    vendored = (PACKAGING / "debian" / "vendor.txt").read_text()
    (core,) = re.findall(r"^pydantic-core==.*(?:\n  .*)*", vendored, re.MULTILINE)
    assert core.count("--hash=sha256:") == len(pythons)


def test_scripts_are_sound() -> None:
    """Each shell script parses, and stops at the first error."""
    for script in (*SCRIPTS, *PACKAGING_SCRIPTS):
        run("bash", "-n", str(TOP / script))
        assert "set -euo pipefail" in (TOP / script).read_text()
    for name in ("rtupdate", "vcpusched.postinst", "vcpusched.prerm", "vcpusched.postrm"):
        run("sh", "-n", str(PACKAGING / "debian" / name))
        assert "\nset -e\n" in (PACKAGING / "debian" / name).read_text()
