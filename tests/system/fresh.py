"""A Debian of its own to install packages into: files only, nothing runs there."""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from image import DPKG_OPTIONS

ELSEWHERE: Final = ("proc", "sys", "dev")
"""What is the kernel's, not Debian's."""

LIMIT_S: Final = 600


class Fresh:
    """The root of a Debian release in a directory, with some packages and what they need."""

    def __init__(self, directory: Path) -> None:
        self.root = directory

    def build(self, release: str, packages: Sequence[str]) -> None:
        """Lay it out; the packages that it is made of stay in its cache. Needs apt's network."""
        run(
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"),
            *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
            *("--skip=cleanup/apt/cache", release, str(self.root)),
        )

    def say(self, *command: str) -> str:
        """Run a command there as root, without a network; gives what it printed."""
        return run(*self._inside(command))

    def refuse(self, *command: str) -> str:
        """Run a command there that must fail; gives what it printed."""
        done = _ended(self._inside(command))
        assert done.returncode != 0, (command, done.stdout)
        return done.stdout

    def files(self) -> dict[str, str]:
        """Give all that is there: what each path is, and a hash of what it holds."""
        found = {}
        for path in self.root.rglob("*"):
            name = path.relative_to(self.root)
            if name.parts[0] not in ELSEWHERE:
                found[str(name)] = _fingerprint(path)
        return found

    def _inside(self, command: Sequence[str]) -> list[str]:
        return [
            *("unshare", "--mount", "--net", "--pid", "--fork"),
            *(f"--mount-proc={self.root / 'proc'}", "chroot", str(self.root)),
            *("env", "--ignore-environment", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"),
            *("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *command),
        ]


def run(*command: str, directory: Path | None = None) -> str:
    """Run a program that must succeed; gives what it printed."""
    done = _ended(command, directory)
    assert done.returncode == 0, (command, done.stdout[-4000:])
    return done.stdout


def _ended(
    command: Sequence[str], directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def _fingerprint(path: Path) -> str:
    found = path.lstat()
    if path.is_symlink():
        return f"link to {path.readlink()}"
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return f"{found.st_mode:o} {found.st_uid}:{found.st_gid} {content}"
