"""The counters that loads are made of, between two readings of the kernel's own files.

It compares readings of the same counters, so it holds however much CPU time the guests get.
"""

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping

import pytest
from lab import Lab, Schedstat

from vcpusched.host.libvirt_host import LibvirtHost
from vcpusched.model import PPM
from vcpusched.observe.observe import observe
from vcpusched.sample import DomainReading, Sample


@pytest.fixture
def host(lab: Lab) -> Iterator[LibvirtHost]:
    """Give the connection of the service to a libvirt with two guests of different loads."""
    lab.add_guest("light", [0.1])
    lab.add_guest("heavy", [0.3, 0.1])
    opened = LibvirtHost(lab.uri)
    yield opened
    opened.close()


def schedstats(lab: Lab) -> Mapping[tuple[str, int], Schedstat]:
    """Read the files of all vCPU threads."""
    guests = lab.guests.values()
    return {(one.name, vcpu): one.schedstat(vcpu) for one in guests for vcpu in one.vcpu_threads()}


def enclosed(lab: Lab, host: LibvirtHost) -> Sample:
    """Take a sample whose counters lie between those of the files before and after it."""
    before = schedstats(lab)
    sample = host.sample()
    after = schedstats(lab)
    found = {(one.name, vcpu.vcpu): (one, vcpu) for one in sample.domains for vcpu in one.vcpus}
    assert found.keys() == before.keys() == after.keys()
    assert len(found) == 3
    for key, (domain, vcpu) in found.items():
        first, last = before[key], after[key]
        assert first.at_ns <= domain.at_ns <= last.at_ns
        assert first.run_ns <= vcpu.run_ns <= last.run_ns
        assert vcpu.waited is not None
        assert first.wait_ns <= vcpu.waited.wait_ns <= last.wait_ns
        assert vcpu.waited.throttled_ns == 0
    return alike(sample)


def alike(sample: Sample) -> Sample:
    """Give the sample as if all pCPUs could do the same, so that usage is time on any machine."""
    cpus = tuple(dataclasses.replace(cpu, capacity_ppm=PPM) for cpu in sample.topology.cpus)
    return dataclasses.replace(sample, topology=dataclasses.replace(sample.topology, cpus=cpus))


def usages_ppm(first: Sample, last: Sample) -> Mapping[tuple[str, int], float]:
    """Give what each counter grew by, over the time that passed between its two readings."""
    earlier: Mapping[str, DomainReading] = {one.uuid: one for one in first.domains}
    return {
        (domain.name, now.vcpu): (now.run_ns - then.run_ns) * PPM / (domain.at_ns - known.at_ns)
        for domain in last.domains
        if (known := earlier[domain.uuid])
        for then, now in zip(known.vcpus, domain.vcpus, strict=True)
    }


def test_what_the_groups_of_guests_say(lab: Lab, host: LibvirtHost) -> None:
    """An unprivileged libvirt makes no groups: guests may go where all threads of theirs may.

    And weigh what the kernel gives a group that nobody gave any.
    """
    sample = host.sample()
    (weight,) = {domain.definition.shares for domain in sample.domains}
    assert weight in {100, 1024}
    for domain in sample.domains:
        thread = lab.guests[domain.name].vcpu_threads()[0]
        bound = domain.definition.cpuset & sample.topology.online
        assert set(bound) == os.sched_getaffinity(thread)


def test_counters_and_usage(lab: Lab, host: LibvirtHost) -> None:
    """What is read is what the kernel says, and the usage is its growth over the time it took."""
    first = last = enclosed(lab, host)
    while last is first or not all(usages_ppm(first, last).values()):
        time.sleep(1)
        last = enclosed(lab, host)
    # Without the busy times of pCPUs, which others here may fill, demand is usage.
    first, last = (dataclasses.replace(one, busy=None) for one in (first, last))
    observed = observe(first, last, observe(None, first))
    loads = {(vcpu.domain, vcpu.id.vcpu): vcpu.load_ppm for vcpu in observed.host.vcpus}
    assert loads == pytest.approx(usages_ppm(first, last), abs=1)
    assert len(loads) == 3
