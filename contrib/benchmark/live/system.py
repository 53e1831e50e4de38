"""Guests of the host's own libvirtd, where they can have quotas.

Rule: as much of a `Lab` as the measurement needs.

Every vCPU of these guests is always busy and is held to what it wants by a quota, so that no guest
keeps time: where pCPUs are emulated themselves, a guest that burns its share by the clock makes too
much or too little of it. All vCPUs of a guest have the same quota, the mean of what they want.
"""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import libvirt
from lab import EMULATORS, FLOPPY_BYTES, Guest, LabError
from lab_guest import GuestPlan
from lab_image import boot_image, program

URI: Final = "qemu:///system"


class SystemHost:
    """The host's libvirtd and the guests that are added to it, gone after `with`.

    Raises LabError where libvirtd does not answer and where there are guests already: the daemon
    under test would move them.
    """

    uri = URI

    def __init__(self) -> None:
        emulator = program(*EMULATORS)
        if emulator is None:
            raise LabError(f"There is no {' or '.join(EMULATORS)}.")
        self._emulator = emulator
        try:
            self._connection: Any = libvirt.open(URI)
            here = [domain.name() for domain in self._connection.listAllDomains()]
        except libvirt.libvirtError as error:
            raise LabError(f"The host's libvirtd takes no connection: {error}.") from error
        if here:
            why = f"There are guests already, which must not be measured with: {', '.join(here)}."
            raise LabError(why)
        self._directory = Path(tempfile.mkdtemp(prefix="vcpusched-live-", dir="/var/tmp"))
        self._directory.chmod(0o755)  # QEMU is another user
        self._guests: dict[str, Guest] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for guest in self._guests.values():
            with contextlib.suppress(libvirt.libvirtError, LabError):
                guest.destroy()
            with contextlib.suppress(libvirt.libvirtError):
                guest.domain().undefine()
        self._connection.close()
        shutil.rmtree(self._directory)

    @property
    def guests(self) -> dict[str, Guest]:
        """Return the guests by name, in the order in which they were added."""
        return dict(self._guests)

    def add_guest(self, name: str, shares: Sequence[float], *, cpuset: str | None = None) -> Guest:
        """Add a guest with one vCPU per share, each held to the mean of them, and start it."""
        image = self._directory / f"{name}.img"
        image.write_bytes(boot_image([1.0] * len(shares)).ljust(FLOPPY_BYTES, b"\0"))
        plan = GuestPlan(
            name=name,
            uuid=str(uuid.uuid4()),
            vcpus=len(shares),
            vcpus_max=len(shares),
            cpuset=cpuset,
            persistent=True,
            image=image,
            quota=sum(shares) / len(shares),
        )
        guest = Guest(plan, plan.xml("kvm", self._emulator), lambda: self._connection)
        guest.define()
        self._guests[name] = guest
        guest.start()
        return guest
