"""Settings from files, drop-ins, variables and the command line, and every mistake in them.

The program itself is run, since the environment and exit statuses are what an administrator meets.
"""

import json
import re
import tomllib
from pathlib import Path

import pytest
from program import vcpusched

from vcpusched.model import Granularity
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.settings import ConfigError, Settings, allowed, load

PACKAGED = Path(__file__).parent.parent / "packaging" / "vcpusched.toml"


def complaint(text: str | bytes, tmp_path: Path, **variables: str) -> str:
    """Give the one line that a configuration file or variable is refused with."""
    file = tmp_path / "bad.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = vcpusched("check-config", "--config", str(file), **variables)
    assert done.returncode == 78, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.replace(str(file), "FILE").removeprefix("vcpusched: ").strip()


def test_defaults_need_no_file(tmp_path: Path) -> None:
    """Without any file the defaults hold, and are said to be defaults."""
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    done = vcpusched("check-config", "--config", str(empty))
    assert done.returncode == 0
    assert re.search(r"^period +3\.0 +default$", done.stdout, re.MULTILINE)
    assert re.search(r'^floating +"auto" +default$', done.stdout, re.MULTILINE)


def test_a_file_that_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As some editors write it, and as snapshots may."""
    file = tmp_path / "marked.toml"
    file.write_bytes(b"\xef\xbb\xbfperiod = 5\n")
    done = vcpusched("check-config", "--config", str(file))
    assert re.search(r"^period +5\.0 ", done.stdout, re.MULTILINE)


def test_precedence_and_sources(tmp_path: Path) -> None:
    """A flag outranks a variable, a variable the file, the file the default."""
    file = tmp_path / "my.toml"
    file.write_text('period = 5\nbalance_threshold = 20\nuri = "qemu:///session"\n')
    done = vcpusched(
        "check-config",
        *("--config", str(file), "--uri", "test:///default"),
        VCPUSCHED_BALANCE_THRESHOLD="30",
        VCPUSCHED_URI="qemu:///embed",
        VCPUSCHED_DRY_RUN="true",
    )
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert rows["period"] == ["5.0", str(file)]
    assert rows["balance_threshold"] == ["30.0", "VCPUSCHED_BALANCE_THRESHOLD"]
    assert rows["uri"] == ['"test:///default"', "command line"]
    assert rows["dry_run"] == ["true", "VCPUSCHED_DRY_RUN"]
    assert rows["max_moves"] == ["32", "default"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("perod = 1", "FILE: perod: no such setting; did you mean period? (there are "),
        ("[sched]\nperiod = 1", "FILE: sched: no such table; settings are not in tables"),
        ('period = "3"', 'FILE: period: "3" is not allowed: must be a number from 0.5 to 3600'),
        ("period = true", "FILE: period: true is not allowed: must be a number from 0.5 to 3600"),
        ("period = 0.4", "FILE: period: 0.4 is not allowed: must be a number from 0.5 to 3600"),
        ("period = nan", "FILE: period: NaN is not allowed: must be a number from 0.5 to 3600"),
        ("period = 3601", "FILE: period: 3601 is not allowed: must be a number from 0.5 to 3600"),
        ("period = [1]", "FILE: period: [1] is not allowed: must be a number from 0.5 to 3600"),
        (
            "balance_threshold = 0",
            "FILE: balance_threshold: 0 is not allowed: must be a number above 0, up to 100",
        ),
        (
            "max_moves = 1.5",
            "FILE: max_moves: 1.5 is not allowed: must be a whole number from 0 to 100000",
        ),
        ('dry_run = "yes"', 'FILE: dry_run: "yes" is not allowed: must be true or false'),
        (
            'floating = "Pin"',
            'FILE: floating: "Pin" is not allowed: must be one of "auto", "pin", "kernel"',
        ),
        (
            'uri = "qemu+ssh://other/system"',
            'FILE: uri: "qemu+ssh://other/system" is not allowed: must be local: ',
        ),
        ('uri = "qemu://other/system"', 'FILE: uri: "qemu://other/system" is not allowed: '),
        ('uri = "nonsense"', 'FILE: uri: "nonsense" is not allowed: must be a libvirt URI '),
        (
            "cpus = 3",
            "FILE: cpus: 3 is not allowed: must be a list of at least one pCPU such as ",
        ),
        (
            'cpus = "x"',
            'FILE: cpus: "x" is not allowed: must be a list of at least one pCPU such as "0-3,8" ',
        ),
        *(
            (f'cpus = "{text}"', f'FILE: cpus: "{text}" is not allowed: must be a list of at ')
            for text in ("", "3-", "All", "^2", "all,^all", "isolated,^isolated", "all,^^2", "^")
        ),
        (
            'include_domains = "web*"',
            'FILE: include_domains: "web*" is not allowed: must be a list of names or globs of',
        ),
        ("exclude_domains = [1]", "FILE: exclude_domains: 1 is not allowed: must be a list of "),
        ('exclude_domains = [""]', 'FILE: exclude_domains: [""] is not allowed: must hold no '),
        (
            "period = 1\n\nmax_moves = = 2",
            "FILE: not a TOML file: Invalid value (at line 3, column 13)",
        ),
        (b"\xff\xfe", "FILE: not a TOML file: not UTF-8 text"),
        ("period = " + "[" * 5000, "FILE: not a TOML file: "),
        ('"a\\nb\\u001b" = 1', "FILE: a?b?: no such setting"),
    ],
)
def test_mistakes_in_a_file(text: str | bytes, line: str, tmp_path: Path) -> None:
    """Each is one line with file, setting, value and what is allowed, and exit status 78."""
    assert complaint(text, tmp_path).startswith(line)


def test_mistakes_in_variables(tmp_path: Path) -> None:
    """The variable is named; an unknown one is refused as an unknown key is."""
    assert complaint("", tmp_path, VCPUSCHED_PERIOD="soon").startswith(
        'VCPUSCHED_PERIOD: "soon" is not allowed: must be a number from 0.5 to 3600'
    )
    assert complaint("", tmp_path, VCPUSCHED_PERIOD="").startswith("VCPUSCHED_PERIOD: ")
    assert complaint("", tmp_path, VCPUSCHED_PEROID="1").startswith(
        "VCPUSCHED_PEROID: no such setting; did you mean period?"
    )


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        (
            "act_on",
            'no longer a setting: floating = "auto" pins floating vCPUs only where they wait',
        ),
        ("confirm", "no longer a setting: two periods confirm an imbalance"),
        ("measure", "no longer a setting: load is demand"),
        ("node_gain", "no longer a setting: the price follows from min_gain"),
        ("settle", "no longer a setting: fixed at 10 s"),
        ("granularity", "now called pin_to"),
        ("moves_max", "now called max_moves"),
        ("service_check", "now called fair_shares"),
        ("exclude_cpus", 'write cpus = "all,^2-3" instead'),
        ("exit_when_idle", "an option of vcpusched run: --exit-when-idle"),
    ],
)
def test_a_setting_that_there_was_names_its_successor(
    key: str, instead: str, tmp_path: Path
) -> None:
    """In a file, whatever its value, in a variable, and among flags."""
    assert key not in Settings.model_fields
    for value in ("1", '"x"', "{}"):
        assert complaint(f"{key} = {value}", tmp_path) == f"FILE: {key}: {instead}"
    variable = f"VCPUSCHED_{key.upper()}"
    assert complaint("", tmp_path, **{variable: "1"}) == f"{variable}: {instead}"
    with pytest.raises(ConfigError, match=f"^command line: {key}: ") as refused:
        load(flags={key: 1})
    assert refused.value.on_command_line


def test_lists_in_variables(tmp_path: Path) -> None:
    """They are separated by commas; an empty variable is an empty list."""
    empty = tmp_path / "empty.toml"
    empty.write_text('include_domains = ["x"]\nexclude_domains = ["x"]\ncpus = "1"\n')
    done = vcpusched(
        *("check-config", "--config", str(empty)),
        VCPUSCHED_INCLUDE_DOMAINS="web*, db-[0-9]",
        VCPUSCHED_EXCLUDE_DOMAINS="",
        VCPUSCHED_CPUS="0-3,8",
    )
    rows = {line.split()[0]: line.split("  ")[1:] for line in done.stdout.splitlines()}
    shown = {key: next(filter(None, map(str.strip, row))) for key, row in rows.items()}
    assert shown["include_domains"] == '["web*", "db-[0-9]"]'
    assert (shown["exclude_domains"], shown["cpus"]) == ("[]", '"0-3,8"')
    listed = {' ["db*", "a"]': ["db*", "a"], "[d]b,a": ["[d]b", "a"], "[1]": ["[1]"]}
    for text, globs in {**listed, "[" * 3000: ["[" * 3000]}.items():
        assert load(empty, {"exclude_domains": text}).settings.exclude_domains == globs
    assert complaint("", tmp_path, VCPUSCHED_EXCLUDE_DOMAINS="a,,b").startswith(
        'VCPUSCHED_EXCLUDE_DOMAINS: ["a", "", "b"] is not allowed: must hold no empty name'
    )


def test_what_the_settings_mean_for_the_rules(tmp_path: Path) -> None:
    """Who sets nothing has what the rules begin with themselves, and sets that the host decides."""
    file = tmp_path / "my.toml"
    file.write_text("")
    assert load(file).settings.placement_rules() == PlacementRules(granularity=Granularity.AUTO)
    file.write_text('cpus = "0-3,isolated"\nexclude_domains = ["db"]\npin_to = "node"\n')
    named = PlacementRules("0-3,isolated", ("*",), ("db",), Granularity.NODE)
    assert load(file).settings.placement_rules() == named


def test_a_mistake_is_reported_where_a_better_source_outranks_it(tmp_path: Path) -> None:
    """It would come to light when the variable goes away: better now."""
    assert complaint("period = 0", tmp_path, VCPUSCHED_PERIOD="5").startswith("FILE: period: 0 ")


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    """A missing file or a directory: one line, and exit status 78."""
    for path, why in ((tmp_path / "no.toml", "No such file"), (tmp_path, "Is a directory")):
        done = vcpusched("check-config", "--config", str(path))
        assert done.returncode == 78
        assert done.stderr.startswith(f"vcpusched: {path}: cannot be read: {why}")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "0.1"],
        ["run", "soon"],
        ["run", "3", "4"],
        ["run", "--uri", "qemu+tls://other/system"],
        ["check-config", "--uri", ""],
        ["dance"],
        ["run", "--perod", "3"],
        [],
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str]) -> None:
    """Exit status 2 and a line that says what is allowed, no traceback."""
    done = vcpusched(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_the_packaged_file_documents_every_setting_with_its_default() -> None:
    """Taking away each "#" before a setting gives all settings, and exactly the defaults."""
    text = PACKAGED.read_text()
    assert tomllib.loads(text) == {}
    enabled = tomllib.loads(re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    defaults = {key: field.default for key, field in Settings.model_fields.items()}
    assert enabled == defaults
    assert json.dumps(enabled) == json.dumps({key: defaults[key] for key in enabled})


def test_the_packaged_file_states_the_limits() -> None:
    """The bounds of each numeric setting stand in its comment."""
    paragraphs = PACKAGED.read_text().split("\n\n")
    for key in ("period", "balance_threshold", "max_moves"):
        (paragraph,) = [text for text in paragraphs if f"#{key} = " in text]
        for bound in re.findall(r"[0-9.]+", allowed(key)):
            assert re.search(rf"\b{re.escape(bound)}\b", paragraph), (key, bound)
