"""Runs the program as a user would, without the settings of whoever runs the tests."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

PROGRAM = (sys.executable, "-m", "vcpusched.cli")


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give our environment without VCPUSCHED_ variables, with those given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VCPUSCHED")}
    return {**kept, **(variables or {})}


def vcpusched(
    *arguments: str, stdin: str | None = None, prefix: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; `prefix` is put before it."""
    return subprocess.run(
        [*prefix, *PROGRAM, *arguments],
        env=environment(variables),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
