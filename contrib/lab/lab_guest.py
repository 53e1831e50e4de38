"""A guest of the lab and the independent readings of what its vCPUs get."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import libvirt
from lab_image import LabError
from lab_processes import arguments, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

VCPU_THREAD = re.compile(r"CPU (\d+)/(?:TCG|KVM)\n?")
MEMORY_FILE = re.compile(r'"?mem-path"?[:=]"?([^",]+)')
MEMORY_MIB = 16
QUOTA_PERIOD_US = 100_000
# Where duty.S counts, in guest memory.
WORK_AT, WORK_STRIDE, WORK_BYTES = 0x9000, 64, 4
WORK_COUNTS = 1 << 8 * WORK_BYTES
NS_PER_S = 1_000_000_000
SAVE_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Schedstat:
    """What the kernel says of a vCPU's thread: nanoseconds run and waited, and when it said so.

    `at_ns` is on the monotonic clock. The kernel brings `run_ns` up to date at its ticks, so a
    reading may be some milliseconds old.
    """

    run_ns: int
    wait_ns: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """What a guest is made of: its vCPUs (`vcpus` now, up to `vcpus_max`), its image and its rules.

    `cpuset` is what the definition allows its vCPUs, as libvirt writes it ("0-3,^2"), if anything;
    `quota` the most that each vCPU gets, in pCPUs, which only a system libvirtd can enforce.
    """

    name: str
    uuid: str
    vcpus: int
    vcpus_max: int
    cpuset: str | None
    persistent: bool
    image: Path
    quota: float | None = None

    def xml(self, domain_type: str, emulator: str) -> str:
        """Return the libvirt definition."""
        cpuset = "" if self.cpuset is None else f" cpuset={quoteattr(self.cpuset)}"
        return f"""
            <domain type={quoteattr(domain_type)}>
              <name>{escape(self.name)}</name>
              <uuid>{self.uuid}</uuid>
              <memory unit='MiB'>{MEMORY_MIB}</memory>
              <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
              <vcpu current='{self.vcpus}'{cpuset}>{self.vcpus_max}</vcpu>
              {self._quota_xml()}
              <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os>
              <features><acpi/></features>
              <devices>
                <emulator>{escape(emulator)}</emulator>
                <disk type='file' device='floppy'>
                  <driver name='qemu' type='raw'/>
                  <source file={quoteattr(str(self.image))}/>
                  <target dev='fda' bus='fdc'/>
                  <readonly/>
                </disk>
                <controller type='usb' model='none'/>
                <memballoon model='none'/>
              </devices>
            </domain>"""

    def _quota_xml(self) -> str:
        if self.quota is None:
            return ""
        quota_us = round(self.quota * QUOTA_PERIOD_US)
        period, quota = f"<period>{QUOTA_PERIOD_US}</period>", f"<quota>{quota_us}</quota>"
        return f"<cputune>{period}{quota}</cputune>"


class Guest:
    """A guest of a `Lab`, which makes it (`Lab.add_guest`).

    It looks its domain up for each use, so it outlives restarts of the daemon.
    """

    def __init__(self, plan: GuestPlan, xml: str, connection: Callable[[], Any]) -> None:
        self.name = plan.name
        self.uuid = plan.uuid
        self.plan = plan
        self._xml = xml
        self._connection = connection
        self._pid: int | None = None

    def domain(self) -> Any:  # noqa: ANN401 - libvirt's binding has no types
        """Return the guest's domain on the lab's own connection."""
        return self._connection().lookupByUUIDString(self.uuid)

    @property
    def pid(self) -> int:
        """The process id of the running guest's QEMU."""
        if self._pid is None or not self._runs_as(self._pid):
            self._pid = next(filter(self._runs_as, processes()), None)
        if self._pid is None:
            raise LabError(f"Guest {self.name} is not running.")
        return self._pid

    def vcpu_threads(self) -> dict[int, int]:
        """Return the thread id of each vCPU that is plugged in, by vCPU number."""
        threads: dict[int, int] = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                name = (task / "comm").read_text()
            except OSError:
                continue  # ended meanwhile
            if match := VCPU_THREAD.fullmatch(name):
                threads[int(match[1])] = int(task.name)
        return dict(sorted(threads.items()))

    def schedstat(self, vcpu: int) -> Schedstat:
        """Return what the kernel says of a vCPU's thread now."""
        thread = self._thread(vcpu)
        try:
            text = Path(f"/proc/{self.pid}/task/{thread}/schedstat").read_text()
        except OSError as error:
            raise LabError(f"vCPU {vcpu} of guest {self.name} is gone.") from error
        run_ns, wait_ns = (int(field) for field in text.split()[:2])
        return Schedstat(run_ns=run_ns, wait_ns=wait_ns, at_ns=time.monotonic_ns())

    def throttled_ns(self, vcpu: int) -> int:
        """Return how long a quota has kept a vCPU from running, which its wait contains.

        0 without a quota. The kernel adds to it when it lets the vCPU run again (cgroup v2's
        `cpu.stat`, which has microseconds).
        """
        if self.plan.quota is None:
            return 0
        try:
            group = Path(f"/proc/{self._thread(vcpu)}/cgroup").read_text().strip().split(":", 2)[2]
            text = Path(f"/sys/fs/cgroup{group}/cpu.stat").read_text()
        except OSError as error:
            raise LabError(f"vCPU {vcpu} of guest {self.name} has no quota to be read.") from error
        counts = dict(line.split() for line in text.splitlines())
        return int(counts["throttled_usec"]) * 1000

    def work(self, vcpu: int) -> int:
        """Return how much a vCPU has worked: a count that only the guest itself raises.

        One is 5,000 turns of its loop, some 20 microseconds on a whole CPU. It starts anywhere and
        goes back to 0 after `WORK_COUNTS` (a day), so differences count. It is read from the file
        that the guest's memory is: neither libvirt nor QEMU is asked, nor does the guest notice.
        """
        files = (found[1] for word in arguments(self.pid) if (found := MEMORY_FILE.search(word)))
        try:
            with Path(next(files)).open("rb") as memory:
                memory.seek(WORK_AT + WORK_STRIDE * vcpu)
                return int.from_bytes(memory.read(WORK_BYTES), "little")
        except (OSError, StopIteration) as error:
            raise LabError(f"The memory of guest {self.name} cannot be read.") from error

    def affinity(self, vcpu: int) -> frozenset[int]:
        """Return the CPUs on which the kernel lets a vCPU run."""
        try:
            return frozenset(os.sched_getaffinity(self._thread(vcpu)))
        except ProcessLookupError as error:
            raise LabError(f"vCPU {vcpu} of guest {self.name} is gone.") from error

    def cpu_time_s(self) -> float:
        """Return the CPU time that all vCPUs together have had since the guest started."""
        return sum(self.schedstat(vcpu).run_ns for vcpu in self.vcpu_threads()) / NS_PER_S

    def pin(self, pin: int | Sequence[int]) -> None:
        """Pin each vCPU, live only, to one CPU: all to the same, or one per vCPU."""
        vcpus = self.plan.vcpus
        cpus = [pin] * vcpus if isinstance(pin, int) else list(pin)
        if len(cpus) != vcpus:
            raise LabError(f"Guest {self.name} has {vcpus} vCPUs, but {len(cpus)} pins.")
        for vcpu, cpu in enumerate(cpus):
            self._pin(vcpu, {cpu})

    def confine(self, cpus: Collection[int]) -> None:
        """Let all vCPUs run on these CPUs, live only, as a pool is kept."""
        for vcpu in range(self.plan.vcpus):
            self._pin(vcpu, cpus)

    def hold(self, share: float) -> None:
        """Let each vCPU have at most this share of a CPU from now on, of a guest with a quota."""
        quota = {"vcpu_quota": round(share * QUOTA_PERIOD_US)}
        try:
            self.domain().setSchedulerParametersFlags(quota, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise LabError(f"Guest {self.name} cannot be held to {share:g}: {error}.") from error

    def define(self) -> None:
        """Make the definition of a persistent guest known to the daemon."""
        if self.plan.persistent:
            self._connection().defineXML(self._xml)

    def start(self) -> None:
        """Start the guest, its load from the beginning, with the pins of its definition only."""
        self._pid = None
        try:
            if self.plan.persistent:
                self.domain().create()
            else:
                self._connection().createXML(self._xml, 0)
        except libvirt.libvirtError as error:
            raise LabError(f"Guest {self.name} does not start: {error}.") from error

    def destroy(self) -> None:
        """End the guest as pulling the plug would; a persistent one stays defined."""
        try:
            self.domain().destroy()
        except libvirt.libvirtError as error:
            raise LabError(f"Guest {self.name} cannot be ended: {error}.") from error
        self._pid = None

    def save(self) -> None:
        """Have libvirt save the guest, to wake when it is started again.

        libvirt 9.0 was once seen to wait for a QEMU that idled, for as long as one let it: the job
        is ended then, and tried once more.
        """
        for _ in range(2):
            saved: Future[int] = Future()
            threading.Thread(target=_fulfil, args=(saved, self.domain()), daemon=True).start()
            try:
                saved.result(SAVE_LIMIT_S)
            except TimeoutError:
                with contextlib.suppress(libvirt.libvirtError):
                    self.domain().abortJob()
            except libvirt.libvirtError as error:
                raise LabError(f"Guest {self.name} cannot be saved: {error}.") from error
            else:
                self._pid = None
                return
        raise LabError(f"Guest {self.name} is not saved in {SAVE_LIMIT_S:g} s.")

    def restart(self) -> None:
        """Destroy the guest and start it again."""
        self.destroy()
        self.start()

    def _pin(self, vcpu: int, cpus: Collection[int]) -> None:
        """Set where a vCPU may run, live only."""
        flags = tuple(cpu in cpus for cpu in range(max(cpus) + 1))
        try:
            self.domain().pinVcpuFlags(vcpu, flags, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            names = f"CPU {', '.join(map(str, sorted(cpus)))}"
            raise LabError(
                f"vCPU {vcpu} of guest {self.name} cannot be pinned to {names}: {error}."
            ) from error

    def _runs_as(self, pid: int) -> bool:
        """Return whether this process is the guest's QEMU."""
        command = arguments(pid)
        return "-uuid" in command and self.uuid in command

    def _thread(self, vcpu: int) -> int:
        """Return the thread id of a vCPU."""
        thread = self.vcpu_threads().get(vcpu)
        if thread is None:
            raise LabError(f"Guest {self.name} has no vCPU {vcpu} plugged in.")
        return thread


def _fulfil(saved: Future[int], domain: Any) -> None:  # noqa: ANN401 - libvirt's binding has no types
    try:
        saved.set_result(domain.managedSave(0))
    except libvirt.libvirtError as error:
        saved.set_exception(error)
