"""The lab that tests on real guests share, as a plugin of pytest."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab


@pytest.fixture(scope="session")
def qemu_cache() -> Iterator[Path]:
    """Keep what libvirt learns of QEMU: to ask it takes two seconds."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-") as directory:
        yield Path(directory)


@pytest.fixture
def lab(qemu_cache: Path) -> Iterator[Lab]:
    """Give a libvirt of its own, removed with all its guests after the test."""
    with Lab(cache=qemu_cache) as opened:
        yield opened
