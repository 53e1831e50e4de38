"""Other programs that pin vCPUs, found in a /proc of files."""

from pathlib import Path

from vcpusched.service import rivals


def processes(tmp_path: Path, *names: str) -> Path:
    """Make a /proc with processes of these names."""
    proc = tmp_path / "proc"
    (proc / "sys").mkdir(parents=True)
    for number, name in enumerate(names, 1):
        (proc / str(number)).mkdir()
        (proc / str(number) / "comm").write_text(f"{name}\n")
    return proc


def test_numad(tmp_path: Path) -> None:
    """A running numad is named, and what to do."""
    (warning,) = rivals.find(processes(tmp_path, "bash", "numad"), tmp_path / "none")
    assert warning.startswith("numad is running")


def test_tuned_only_with_a_profile_that_pins(tmp_path: Path) -> None:
    """It is on many hosts; only some of its profiles move threads."""
    proc, profile = processes(tmp_path, "tuned"), tmp_path / "active_profile"
    profile.write_text("virtual-host\n")
    assert list(rivals.find(proc, profile)) == []
    profile.write_text("cpu-partitioning\n")
    assert len(list(rivals.find(proc, profile))) == 1


def test_nothing_to_find(tmp_path: Path) -> None:
    """No rivals, and a /proc that cannot be read: no warning, no error."""
    assert list(rivals.find(processes(tmp_path, "bash"), tmp_path / "none")) == []
    assert list(rivals.find(tmp_path / "nothing", tmp_path / "none")) == []
