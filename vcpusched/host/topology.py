"""The topology of the pCPUs that are online, read again when others are online.

Rule: knows when to ask, how long to wait, and that the machine is flat until there is an answer;
how libvirt is asked is passed in. The question runs in a thread of its own.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from vcpusched.host import cpus as host_cpus
from vcpusched.host.libvirt_xml import flat_topology, read_topology
from vcpusched.model import PPM, CpuSet, Topology

BRIEFLY_S: Final = 0.1
ANSWER_NS: Final = 8 * 1_000_000_000
"""How long samples wait for a topology, counted from the question: the first one briefly, because
that is usually enough and because there are no loads to plan for before the second one."""

PAUSE_NS: Final = 60 * 1_000_000_000
"""How long to wait before libvirt is asked again for a topology that it did not report."""


class _Question:
    """One question for the capabilities, asked in a thread.

    Usually the answer takes 2 ms. But the first one after QEMU, libvirt or the kernel was changed
    takes seconds for every QEMU binary that is installed, because libvirt runs them all to see what
    they can do (virQEMUCapsInit): with many of them longer than a cycle may.
    """

    def __init__(self, ask: Callable[[], str | None]) -> None:
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.until_ns = time.monotonic_ns() + ANSWER_NS
        threading.Thread(
            target=lambda: self._answers.put(ask()), name="libvirt-topology", daemon=True
        ).start()

    def answer(self, timeout_s: float) -> str | None:
        """Return the XML, None where it cannot be had. Raises queue.Empty while it is not here."""
        return self._answers.get(timeout=timeout_s)


class Topologies:
    """The topology as it was last read.

    `ask` returns libvirt's capabilities as XML, None where they cannot be had. It runs in another
    thread.
    """

    def __init__(self, ask: Callable[[], str | None]) -> None:
        self._ask = ask
        self._known = Topology(())
        self._question: _Question | None = None
        self._ask_again_ns: int | None = None

    def of(self, online: CpuSet) -> Topology:
        """Return the topology of these pCPUs; while it is not known, the machine is flat."""
        now_ns, timeout_s = time.monotonic_ns(), BRIEFLY_S
        due = self._ask_again_ns is not None and now_ns >= self._ask_again_ns
        if due or self._known.online != online:
            self._known = _with_capacities(flat_topology(online))
            self._question, self._ask_again_ns = _Question(self._ask), None
        elif self._question is not None:
            timeout_s = max(0, self._question.until_ns - now_ns) / 1e9
        if self._question is not None:
            with contextlib.suppress(queue.Empty):
                xml = self._question.answer(timeout_s)
                self._question = None
                if xml is None:
                    self._ask_again_ns = now_ns + PAUSE_NS
                else:
                    self._known = _with_capacities(read_topology(xml, online))
        return self._known


def _with_capacities(topology: Topology) -> Topology:
    """Add what the kernel says that pCPUs can do, which libvirt does not say."""
    capacity_ppm = host_cpus.capacities(topology.online)
    cpus = (replace(cpu, capacity_ppm=capacity_ppm.get(cpu.id, PPM)) for cpu in topology.cpus)
    return replace(topology, cpus=tuple(cpus))
