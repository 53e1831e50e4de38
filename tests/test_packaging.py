"""What is packaged agrees with the code and with the tools that will read it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from program import vcpusched

from vcpusched import __version__, exits
from vcpusched.config import Settings
from vcpusched.report import MESSAGE_ID_PIN, MESSAGE_ID_PLAN

TOP = Path(__file__).parent.parent
PACKAGING = TOP / "packaging"
VERBS = ("run", "plan", "snapshot", "status", "check-config", "simulate")


def plain(value: object) -> str:
    """Give a value of a setting without the quotes that a format puts around text."""
    return str(value).replace('"', "").replace("'", "").lower()


DEFAULTS = {key: plain(field.default) for key, field in Settings.model_fields.items()}


def run(*command: str, **options: object) -> str:
    """Run a tool that must succeed in silence or say what it has to say; gives its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return str(done.stdout + done.stderr)


def test_the_unit_is_right_for_systemd(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing to say; only the program's path is put in place."""
    unit = tmp_path / "vcpusched.service"
    program = Path(sys.executable).parent / "vcpusched"
    text = (PACKAGING / "vcpusched.service").read_text()
    assert "ExecStart=/usr/bin/vcpusched run\n" in text
    unit.write_text(text.replace("/usr/bin/vcpusched", str(program)))
    said = run("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(unit))
    assert [line for line in said.splitlines() if "vcpusched" in line] == []


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
    assert not re.search(r"^(Requires|BindsTo|PartOf|Wants)=", unit, re.MULTILINE)


def test_the_catalog_explains_every_message(tmp_path: Path) -> None:
    """The journal takes the catalog in, and finds both messages in it by their IDs."""
    catalog = tmp_path / "usr/lib/systemd/catalog"
    catalog.mkdir(parents=True)
    text = (PACKAGING / "vcpusched.catalog").read_text()
    (catalog / "vcpusched.catalog").write_text(text)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    run("journalctl", f"--root={tmp_path}", "--update-catalog")
    for message_id in (MESSAGE_ID_PIN, MESSAGE_ID_PLAN):
        shown = run("journalctl", f"--root={tmp_path}", "--dump-catalog", message_id)
        assert "Subject: " in shown
        assert "Defined-By: vcpusched" in shown


@pytest.mark.parametrize("page", ["vcpusched.8", "vcpusched.toml.5"])
def test_the_man_pages_can_be_read(page: str) -> None:
    """`man` formats them without a warning."""
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(PACKAGING / page)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "vcpusched" in done.stdout


def test_the_man_pages_tell_of_everything() -> None:
    """Each verb, option, exit status, message ID and setting, with the version."""
    manual = (PACKAGING / "vcpusched.8").read_text().replace("\\-", "-")
    for verb in VERBS:
        assert f".B {verb}\n" in manual
        for option in re.findall(r"(--[a-z-]+)", vcpusched(verb, "--help").stdout):
            assert option == "--help" or option in manual, (verb, option)
    statuses = {value for name, value in vars(exits).items() if name.isupper()}
    assert set(map(int, re.findall(r"^\.B (\d+)$", manual, re.MULTILINE))) == statuses
    assert MESSAGE_ID_PIN in manual
    assert MESSAGE_ID_PLAN in manual
    settings = (PACKAGING / "vcpusched.toml.5").read_text()
    described = re.findall(r'^\.BR (\w+) " \(default (.*)\)"$', settings, re.MULTILINE)
    assert {key: plain(default.replace("\\(dq", "")) for key, default in described} == DEFAULTS
    for page in PACKAGING.glob("*.[58]"):
        assert f'"vcpusched {__version__}"' in page.read_text()


def test_the_readme_tells_of_everything() -> None:
    """Its two commands, each verb and each setting with its default."""
    readme = (TOP / "README.md").read_text()
    assert "sudo contrib/quickstart" in readme
    assert "tests/run" in readme
    for verb in VERBS:
        assert f"`vcpusched {verb}" in readme, verb
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", readme, re.MULTILINE))
    assert {key: plain(value) for key, value in rows.items()} == DEFAULTS


def test_scripts_are_sound() -> None:
    """Each shell script parses, and stops at the first error."""
    for script in ("contrib/quickstart", "tests/run", ".ci/run", "packaging/install"):
        run("bash", "-n", str(TOP / script))
        assert "set -euo pipefail" in (TOP / script).read_text()
