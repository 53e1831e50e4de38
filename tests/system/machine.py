"""A virtual machine with eight pCPUs, two NUMA nodes, systemd, libvirtd and real KVM guests.

QEMU emulates all of it, an AMD processor with SVM included, so that it needs no KVM itself. Eight
pCPUs share what this machine has: all is slow, and waits have to be generous. There is no network;
commands go through a serial port of their own to `agent.py`.
"""

import base64
import contextlib
import itertools
import json
import math
import os
import re
import select
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from signal import Signals
from types import MappingProxyType, TracebackType
from typing import Any, Final, NoReturn, Self

from guest_shape import FLOPPY_BYTES, GuestShape
from image import FIRST_QUOTA, IGNORED, TOP, Image

BOOT_LIMIT_S: Final = 600.0
COMMAND_LIMIT_S: Final = 300.0
START_LIMIT_S: Final = 600.0
"""For some guests to start: 8 s each on an idle machine."""
ANSWER_LIMIT_S: Final = 30.0
"""How much later than a command's own limit the machine may report it."""
PULSE_S: Final = 20.0
"""When it has said nothing for so long, it is asked for a sign of life, again and again."""
FROZEN_S: Final = 120.0
"""Without any sign for so long, it has frozen: it gives one within a second or two, also while
guests start."""

CONSOLE_BYTES: Final = 8000

HARDWARE: Final = (
    *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-m", "4096"),
    # topoext is what puts the second threads into cores; TCG knows no other name for it.
    *("-cpu", "EPYC-Rome-v2,+svm,+npt,+topoext,enforce=off"),
    *("-smp", "8,sockets=2,cores=2,threads=2"),
    *("-object", "memory-backend-ram,id=memory0,size=2048M"),
    *("-object", "memory-backend-ram,id=memory1,size=2048M"),
    *("-numa", "node,nodeid=0,cpus=0-3,memdev=memory0"),
    *("-numa", "node,nodeid=1,cpus=4-7,memdev=memory1"),
    *("-display", "none", "-nodefaults"),
    # One that resets itself halts instead, and can still be asked what its processors were at.
    *("-action", "reboot=shutdown,shutdown=pause"),
)
KERNEL: Final = (
    "maxcpus=1",  # see image.FILES
    *("root=/dev/vda", "rw", "console=ttyS0", "quiet", "panic=-1"),
    # What emulated processors do not need, and what a crowded machine takes for faults.
    *("mitigations=off", "no_timer_check", "tsc=reliable", "nowatchdog"),
    *("rcupdate.rcu_cpu_stall_suppress=1", "systemd.show_status=1"),
    f"systemd.default_timeout_start_sec={BOOT_LIMIT_S:.0f}",
)


class MachineError(AssertionError):
    """The machine does not do what it was asked, or not in time; the text has its last words."""


class MachineLostError(MachineError):
    """The machine is of no more use: QEMU has ended, or nothing in it runs any more.

    Of a machine that has frozen the text says what its processors were at.
    """


@dataclass(frozen=True, slots=True)
class Done:
    """What a command did: `status` is None where its limit ended it."""

    status: int | None
    out: str
    err: str


class Machine:
    """The machine, booted in `with`; its files are in `directory`.

    `files` are brought along, below its root, beside this checkout in /src.
    """

    def __init__(
        self,
        image: Image,
        directory: Path,
        *kernel_arguments: str,
        files: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self._image = image
        self._directory = directory
        self._kernel_arguments = kernel_arguments
        self._files = files
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._received = b""
        self._heard_s = 0.0
        self._answers: dict[int, dict[str, Any]] = {}
        self._answered = False  # ever: while it boots it cannot
        self._ids = itertools.count()
        self.boot_s = 0.0
        self.is_lost = False

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:  # an interrupt must not leave it running either
            self.power_off()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.power_off()

    def boot(self) -> None:
        """Boot, with checkout and files, and wait until systemd has started everything."""
        began_s = time.monotonic()
        source = self._directory / "source.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(TOP, "src", filter=_shipped)
            for path, brought in self._files.items():
                archive.add(brought, path.lstrip("/"))
        port = self._directory / "agent"
        arguments = (*KERNEL, *self._kernel_arguments)
        with self._console_path.open("wb") as console:
            self._qemu = subprocess.Popen(
                [
                    # It ends with us, however we end.
                    *("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", *HARDWARE),
                    *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)),
                    *("-append", " ".join(arguments), "-serial", "stdio"),
                    *("-monitor", f"unix:{self._monitor_path},server=on,wait=off"),
                    # Writes go to a file that is gone with QEMU.
                    *_disk("machine", self._image.disk, "snapshot=on,cache=unsafe"),
                    *_disk("source", source, "readonly=on"),
                    *("-device", "virtio-serial-pci"),
                    *("-chardev", f"socket,id=agent,path={port},server=on,wait=off"),
                    *("-device", "virtserialport,chardev=agent,name=agent"),
                    *("-device", "virtio-rng-pci"),
                ],
                cwd=self._directory,
                env={**os.environ, "TMPDIR": str(self._directory)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        deadline_s = began_s + BOOT_LIMIT_S
        self._connect(port, deadline_s)
        up = self.run("systemctl", "is-system-running", "--wait", limit_s=BOOT_LIMIT_S)
        if up.out.strip() != "running":
            failed = self.run("systemctl", "status", "--state=failed", "--no-pager", "--full").out
            raise MachineError(f"systemd is {up.out.strip()}:\n{failed}\n{self.console()}")
        if self.say("cat", FIRST_QUOTA).startswith("max"):
            raise MachineError(f"{FIRST_QUOTA} has no quota, so that this one may freeze later")
        if self.say("systemctl", "is-active", "processors", check=False) != "active\n":
            raise MachineError("the processors were not started one after the other")
        self.boot_s = time.monotonic() - began_s

    def power_off(self) -> None:
        """End it, whatever state it is in: nothing that it wrote is kept."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
        if self._port is not None:
            self._port.close()

    def console(self) -> str:
        """Give the end of what the machine wrote to its console."""
        with contextlib.suppress(OSError):
            return self._console_path.read_bytes()[-CONSOLE_BYTES:].decode(errors="replace")
        return ""

    def processors(self) -> str:
        """Give what QEMU knows of each processor: where it is, and whether it halts."""
        output = self._monitor("info status", "info cpus", "info registers -a")
        kept = re.findall(r"^.*(?:status:|CPU *#|[RE]IP=|CR[0-4]=).*$", output, re.MULTILINE)
        return "\n".join(line.strip() for line in kept)

    def run(self, *command: str, limit_s: float = COMMAND_LIMIT_S) -> Done:
        """Run a command in the machine as root, for at most `limit_s`. Raises MachineError."""
        answer = self._ask({"command": command, "limit_s": limit_s}, limit_s)
        return Done(answer["status"], answer["out"], answer["err"])

    def say(self, *command: str, check: bool = True, limit_s: float = COMMAND_LIMIT_S) -> str:
        """Run a command in the machine; gives what it printed. Raises MachineError."""
        done = self.run(*command, limit_s=limit_s)
        if check and done.status != 0:
            ended = f"status {done.status}" if done.status is not None else f"not in {limit_s:g} s"
            raise MachineError(f"{' '.join(command)}: {ended}\n{done.out}{done.err}")
        return done.out + done.err

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file in the machine, and the folders that it needs. Raises MachineError."""
        raw = content if isinstance(content, bytes) else content.encode()
        text = base64.b64encode(raw).decode()
        answer = self._ask({"path": path, "content": text, "mode": mode}, COMMAND_LIMIT_S)
        if answer["status"] != 0:
            raise MachineError(f"{path}: {answer['err']}")

    def add_guests(self, shapes: Mapping[str, GuestShape]) -> None:
        """Define and start guests, by name. Raises MachineError."""
        commands, images = [], []
        for name, shape in shapes.items():
            images.append(f"/var/lib/libvirt/images/{name}.img")
            # Sent without the zeros that fill a floppy: the port takes five seconds for them.
            self.write(images[-1], shape.floppy().rstrip(b"\0"))
            self.write(f"/root/{name}.xml", shape.xml("kvm", name, images[-1]))
            commands += [f"define /root/{name}.xml", f"start {name}", _pinning(name, shape.pins)]
        if commands:
            self.say("truncate", f"--size={FLOPPY_BYTES}", *images)
            output = self.say("virsh", "; ".join(commands), limit_s=START_LIMIT_S)
            if "error:" in output:  # it goes on after a command that failed
                raise MachineError(output)

    def remove_guests(self, names: Iterable[str]) -> None:
        """End guests, and forget them. Raises MachineError."""
        self.say("virsh", "; ".join(f"destroy {name}; undefine {name}" for name in names))

    def pin(self, pins: Mapping[str, Sequence[str]]) -> None:
        """Pin guests' vCPUs as an administrator does, live only, to cpulists by vCPU number."""
        self.say("virsh", "; ".join(_pinning(name, cpus) for name, cpus in pins.items()))

    def _monitor(self, *commands: str) -> str:
        """Give what QEMU answers to commands: empty if it does not."""
        output = b""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(3)
            monitor.connect(str(self._monitor_path))
            monitor.sendall("".join(f"{command}\n" for command in commands).encode())
            while received := monitor.recv(1 << 16):
                output += received
        return output.decode(errors="replace")

    @property
    def _console_path(self) -> Path:
        return self._directory / "console.log"

    @property
    def _monitor_path(self) -> Path:
        return self._directory / "monitor"

    def _connect(self, path: Path, deadline_s: float) -> None:
        """Reach the agent's port, and wait until the agent answers there."""
        self._port = socket.socket(socket.AF_UNIX)
        while True:
            self._look_alive(deadline_s)
            with contextlib.suppress(OSError):
                self._port.connect(str(path))
                break
            time.sleep(0.1)
        self._ask({"command": ["true"], "limit_s": 60}, deadline_s - time.monotonic())
        self._answered = True

    def _ask(self, request: Mapping[str, object], limit_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._port is not None
        deadline_s = time.monotonic() + limit_s + ANSWER_LIMIT_S
        number = self._send(request)
        self._heard_s = pulse_s = time.monotonic()
        while number not in self._answers:
            self._look_alive(deadline_s)
            if time.monotonic() - max(self._heard_s, pulse_s) > PULSE_S:
                if "paused (shutdown)" in self._monitor("info status"):
                    self._lose("has reset itself")
                self._send({})
                pulse_s = time.monotonic()
            if select.select([self._port], [], [], 1.0)[0]:
                received = self._port.recv(1 << 16)
                if received:
                    self._heard_s = time.monotonic()
                else:  # QEMU is ending
                    time.sleep(0.1)
                self._take(received)
        return self._answers.pop(number)

    def _send(self, request: Mapping[str, object]) -> int:
        """Send a request; gives its number."""
        assert self._port is not None
        number = next(self._ids)
        self._port.settimeout(FROZEN_S)
        try:
            self._port.sendall(json.dumps({"id": number, **request}).encode() + b"\n")
        except OSError as error:
            time.sleep(1)  # for QEMU to have ended, if that is why
            self._look_alive(math.inf)
            output = f"the machine takes no commands: {error}\n{self.console()}"
            raise MachineError(output) from None
        return number

    def _take(self, received: bytes) -> None:
        """Sort what came in into answers; those of requests that were given up are kept, unread."""
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._answers[answer["id"]] = answer

    def _lose(self, how: str) -> NoReturn:
        self.is_lost = True
        raise MachineLostError(f"the machine {how}:\n{self.processors()}\n{self.console()}")

    def _look_alive(self, deadline_s: float) -> None:
        assert self._qemu is not None
        if (status := self._qemu.poll()) is not None:
            self._lose(
                "ended with " + (Signals(-status).name if status < 0 else f"status {status}")
            )
        if self._answered and time.monotonic() - self._heard_s > FROZEN_S:
            self._lose("has frozen")
        if time.monotonic() > deadline_s:
            raise MachineError(f"the machine does not answer:\n{self.console()}")


def _pinning(name: str, pins: Sequence[str]) -> str:
    """Write commands of virsh: one process for all is much the quickest."""
    commands = [f"vcpupin {name} {vcpu} {cpus} --live" for vcpu, cpus in enumerate(pins)]
    return "; ".join(commands)


def _disk(name: str, path: Path, how: str) -> list[str]:
    """Write QEMU's arguments for a disk; the machine sees them in this order as vda, vdb."""
    drive = f"if=none,id={name},file={path},format=raw,{how}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _shipped(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what is no part of a checkout."""
    name = Path(entry.name).name
    return None if any(fnmatchcase(name, glob) for glob in IGNORED) else entry
