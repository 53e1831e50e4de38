"""A private libvirt daemon with real guests that carry set loads, for tests and demonstrations.

    with Lab() as lab:
        guest = lab.add_guest("half", [0.5], pin=0)
        print(lab.uri, guest.affinity(0), guest.cpu_time_s())

Nothing of the machine's own libvirt is seen or touched, and nothing is left behind, even if the
program that holds the lab is killed. Guests are emulated, so no KVM is needed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import lab_processes
import libvirt
from lab_daemon import Daemon, make_directory
from lab_guest import Guest, GuestPlan, Schedstat
from lab_image import MORE_PATHS, LabError, boot_image, program

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Guest", "Lab", "LabError", "Schedstat", "boot_image"]

DAEMONS = ("libvirtd", "virtqemud")
EMULATORS = ("qemu-system-x86_64", "qemu-kvm")
UNPRIVILEGED = "nobody"
FLOPPY_BYTES = 1_474_560  # what makes the BIOS take the image for a 1.44 MB floppy
# What makes a daemon another host than this one: files of its own below /etc, and a name.
APART = 'mount -t overlay overlay -o lowerdir="$0":/etc /etc && hostname "$1" && shift && exec "$@"'
# libvirt would otherwise start a logging daemon, and label files that only the lab uses.
QEMU_CONF = 'stdio_handler = "file"\nsecurity_driver = "none"\nmemory_backing_dir = "{memory}"\n'


class Lab:
    """A libvirt daemon of its own and its guests, in `with`.

    All of it lives in `directory` (absent or empty, at most 38 characters, gone after `close`; by
    default a new one in memory) and runs as the caller, or as nobody for root. What libvirt learns
    of the emulator stays in the directory `cache`, for the labs that are given the same one after
    this. With `etc` the daemon is another host than this one to other daemons, which guests can be
    migrated to, and finds what is in that directory in /etc, before what this host has there; that
    takes root.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        cache: Path | None = None,
        etc: Path | None = None,
    ) -> None:
        user_id = os.geteuid()
        self._privileged = user_id == 0
        self._account = pwd.getpwnam(UNPRIVILEGED) if self._privileged else pwd.getpwuid(user_id)
        daemon, emulator = program(*DAEMONS), program(*EMULATORS)
        if daemon is None or emulator is None:
            wanted = " or ".join(DAEMONS if daemon is None else EMULATORS)
            raise LabError(f"The lab needs {wanted}, and there is none.")
        self._daemon_program = daemon
        self._emulator = emulator
        self._cache = cache
        self._etc = etc
        self._host = str(uuid.uuid4())
        self._given_directory = directory
        self._directory: Path | None = None
        self._daemon = Daemon()
        self._reaper: subprocess.Popen[bytes] | None = None
        self._connection: Any = None
        self._connected_to: int | None = None
        self._guests: dict[str, Guest] = {}

    def __enter__(self) -> Self:
        """Start the daemon."""
        try:
            self._directory = make_directory(self._given_directory)
            self._watch()
            self._furnish()
            self.start_daemon()
        except BaseException:  # an interrupt must not leave processes behind either
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """Return where the lab lives."""
        if self._directory is None:
            raise LabError("The lab is not open.")
        return self._directory

    @property
    def uri(self) -> str:
        """Return what a client of any user connects to, if it may use the socket; root may."""
        return f"qemu:///session?socket={quote(str(self._socket))}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the whole environment for a client program that runs as the lab's user."""
        foreign = ("XDG_", "LIBVIRT_", "DBUS_", "SUDO_", "VIRSH_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | {
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *MORE_PATHS]),
            "USER": self._account.pw_name,
            "LOGNAME": self._account.pw_name,
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "temporary"),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "XDG_CACHE_HOME": str(self._cache or self.directory / "cache"),
            "XDG_DATA_HOME": str(self.directory / "data"),
            "LIBVIRT_DEFAULT_URI": self.uri,
        }

    @property
    def guests(self) -> dict[str, Guest]:
        """Return the guests by name, in the order in which they were added."""
        return dict(self._guests)

    @property
    def daemon_pid(self) -> int:
        """Return the process id of the running daemon."""
        return self._daemon.pid

    def command(self, args: Sequence[str]) -> list[str]:
        """Return the command that runs `args` as the lab's user (in the lab's `environment`)."""
        if not self._privileged:
            return list(args)
        ids = [f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}"]
        return ["setpriv", *ids, "--clear-groups", "--", *args]

    def close(self) -> None:
        """End all guests and the daemon, whatever state they are in, and remove the directory."""
        if self._directory is None:
            return
        self._daemon.kill()
        self._disconnect()  # only now, as a frozen daemon would not say goodbye
        ended = lab_processes.end_lab(self._directory)
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait()
        directory = self._directory
        self._directory = self._reaper = None
        self._guests.clear()
        if not ended or directory.exists():
            raise LabError(f"Something of the lab in {directory} would not go away.")

    def connection(self) -> Any:  # noqa: ANN401 - libvirt's binding has no types
        """Return a libvirt connection, the same one until the daemon is another.

        Against a frozen daemon its calls block.
        """
        pid = self.daemon_pid
        if pid != self._connected_to:
            self._disconnect()
            try:
                self._connection = libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                raise LabError(f"The lab's daemon takes no connection: {error}.") from error
            self._connected_to = pid
        return self._connection

    def start_daemon(self) -> None:
        """Start the daemon and wait until it answers and has taken over all running guests."""
        command = self.command([self._daemon_program])
        if self._etc is not None:
            apart = ["unshare", "--mount", "--propagation=private", "--uts", "sh", "-c", APART]
            command = [*apart, str(self._etc), self._host, *command]
        self._daemon.start(command, self.environment, self.directory, self._socket)
        # The daemon answers before it has its guests back, and would fail to destroy one meanwhile.
        # This call waits its turn behind that.
        for domain in self.connection().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            with contextlib.suppress(libvirt.libvirtError):
                domain.memoryStats()

    def stop_daemon(self, *, kill: bool = False) -> None:
        """End the daemon, by SIGKILL if `kill`; its guests stay."""
        self._daemon.stop(signal.SIGKILL if kill else signal.SIGTERM)

    def restart_daemon(self, *, kill: bool = False) -> None:
        """End the daemon and start it again; its guests stay."""
        self.stop_daemon(kill=kill)
        self.start_daemon()

    def freeze_daemon(self) -> None:
        """Stop the daemon in its tracks: it keeps its connections, and answers nothing."""
        self._daemon.signal(signal.SIGSTOP)

    def thaw_daemon(self) -> None:
        """Let a frozen daemon go on."""
        self._daemon.signal(signal.SIGCONT)

    def add_guest(  # noqa: PLR0913 - all of them say what guest it is
        self,
        name: str,
        shares: Sequence[float],
        *,
        pin: int | Sequence[int] | None = None,
        cpuset: str | None = None,
        persistent: bool = True,
        later: Sequence[float] | None = None,
        step_after_s: float = 0.0,
        vcpus_max: int | None = None,
    ) -> Guest:
        """Add a guest with one vCPU per share (each 0 to 1 of a CPU), and start it.

        `later` shares replace the first ones `step_after_s` seconds after its boot. With
        `vcpus_max`, vCPUs can be plugged in up to that number; these carry the last share. `pin`
        is one CPU for all vCPUs or one for each, applied live once the guest runs; the
        definition restricts nothing but what `cpuset` says ("0-3,^2").
        """
        if name in self._guests:
            raise LabError(f"There is a guest {name} already.")
        vcpus = len(shares)
        most = vcpus if vcpus_max is None else vcpus_max
        if most < vcpus:
            raise LabError(f"Guest {name} cannot have {vcpus} vCPUs when {most} are the most.")
        fill = range(most - vcpus)
        shares = [*shares, *(shares[-1] for _ in fill)]
        later = None if later is None else [*later, *(later[-1] for _ in fill)]
        identity = str(uuid.uuid4())
        image = self.directory / "images" / f"{identity}.img"
        image.write_bytes(boot_image(shares, later, step_after_s))
        image.chmod(0o644)  # whatever our umask, the lab's user reads it
        os.truncate(image, FLOPPY_BYTES)
        plan = GuestPlan(name, identity, vcpus, most, cpuset, persistent, image)
        guest = Guest(plan, plan.xml("qemu", self._emulator), self.connection)
        guest.define()
        self._guests[name] = guest
        guest.start()
        if pin is not None:
            guest.pin(pin)
        return guest

    @property
    def _socket(self) -> Path:
        """The daemon's socket."""
        name = Path(self._daemon_program).name
        return self.directory / "run/libvirt" / f"{name.removesuffix('d')}-sock"

    def _disconnect(self) -> None:
        """Close the connection, whether that works or not."""
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
        self._connection = self._connected_to = None

    def _furnish(self) -> None:
        """Make what the daemon and its guests expect, owned by the lab's user."""
        directory = self.directory
        names = ("home", "temporary", "run", "config/libvirt", "cache", "data", "images", "memory")
        for name in names:
            (directory / name).mkdir(parents=True)
        conf = QEMU_CONF.format(memory=directory / "memory")
        (directory / "config/libvirt/qemu.conf").write_text(conf)
        (directory / "config/libvirt/libvirtd.conf").write_text(f'host_uuid = "{self._host}"\n')
        if self._privileged:
            shared = [] if self._cache is None else [self._cache]
            for path in (directory, *directory.rglob("*"), *shared):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        (directory / "run").chmod(0o700)
        reach = self.command(["test", "-w", str(directory / "home")])
        if subprocess.run(reach, check=False).returncode:
            raise LabError(f"User {self._account.pw_name} cannot work in {directory}.")

    def _watch(self) -> None:
        """Start the process that cleans up after us if we die: it sees its input end."""
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", lab_processes.__file__, str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
