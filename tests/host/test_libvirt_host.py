"""What libvirt says, translated: vCPUs, maps of pCPUs.

The answers are in the shape of libvirt-python 9 to 12: tuples of numbers and of booleans.
"""

import libvirt

from vcpusched.host.definitions import FirstSeen
from vcpusched.host.libvirt_host import LibvirtHost, parse_vcpus
from vcpusched.host.libvirt_xml import to_map
from vcpusched.model import CpuSet, DomainUuid
from vcpusched.sample import Definition


def test_vcpus_with_gaps_in_their_numbers() -> None:
    """Row i of the maps belongs to the i-th vCPU listed, not to vCPU i; -1 is no pCPU.

    A row of zeros with an empty map is a vCPU that went away between two calls of the binding.
    """
    infos = [(0, 1, 5_000_000_000, 3), (2, 1, 70_000_000, -1), (0, 0, 0, 0)]
    maps = [(True,) * 8, (False, False, True) + (False,) * 5, (False,) * 8]
    first, second = parse_vcpus(infos, maps)
    assert (first.vcpu, first.run_ns, str(first.affinity), first.on) == (0, 5 * 10**9, "0-7", 3)
    assert (second.vcpu, str(second.affinity), second.on) == (2, "2", None)


def test_maps_of_a_machine_with_offline_pcpus() -> None:
    """128 pCPUs of which 64 to 127 are offline: the map reaches the highest."""
    flags = (True,) * 64 + (False,) * 64
    (reading,) = parse_vcpus([(0, 1, 0, 63)], [flags])
    assert str(reading.affinity) == "0-63"
    assert to_map(CpuSet.of([63]), 128).index(True) == 63


def test_against_the_test_driver() -> None:
    """In libvirt's own test driver 3 of its 8 pCPUs are online, and its domain has two vCPUs."""
    host = LibvirtHost("test:///default")
    try:
        sample = host.sample()
        assert str(sample.topology.online) == "0,2,4"
        (domain,) = sample.domains
        assert (domain.name, len(domain.vcpus)) == ("test", 2)
        assert str(domain.definition.allowed[0] & sample.topology.online) == "0,2,4"
        again = host.sample().topology  # read once more, and as it was: so it is read no more
        assert again == sample.topology
        assert again is not sample.topology
        assert host.sample().topology is again
        assert host.is_alive()
    finally:
        host.close()


TRANSIENT = """<domain type="test"><name>passing</name>
<uuid>5e9b2a7c-6c1f-4c55-8f0e-3b7d1f0a9c42</uuid><memory>65536</memory>
<vcpu cpuset="{}">1</vcpu><os><type>hvm</type></os></domain>"""


def sampled(host: LibvirtHost) -> Definition:
    """Give the definition of the transient domain in a sample."""
    (found,) = (domain for domain in host.sample().domains if domain.name == "passing")
    return found.definition


def test_a_transient_domain_may_go_where_it_might_when_it_was_first_seen() -> None:
    """A pin is in its live definition, and it has no other: no pin makes its mask narrower.

    Neither when its definition is read anew, nor over the next connection. Once it has ended, it
    begins anew, also where nobody saw the end: within one period, or while we were not connected.
    """
    outside = libvirt.open("test:///default")  # all of a process see the same domains
    domain = outside.createXML(TRANSIENT.format("0,2"))
    first_seen: FirstSeen = {}
    host = LibvirtHost("test:///default", first_seen=first_seen)
    try:
        assert str(sampled(host).allowed[0]) == "0,2"
        domain.pinVcpu(0, (False, False, True))
        again = host.definition(DomainUuid(domain.UUIDString()))
        assert (str(again.booked[0]), str(again.allowed[0])) == ("2", "0,2")
        host.close()
        host = LibvirtHost("test:///default", first_seen=first_seen)
        assert str(sampled(host).allowed[0]) == "0,2"
        domain.destroy()
        host.sample()
        domain = outside.createXML(TRANSIENT.format("4"))
        assert str(sampled(host).allowed[0]) == "4"
        domain.destroy()
        domain = outside.createXML(TRANSIENT.format("2"))
        assert str(sampled(host).allowed[0]) == "2"
        host.close()
        domain.destroy()
        domain = outside.createXML(TRANSIENT.format("0,4"))
        host = LibvirtHost("test:///default", first_seen=first_seen)
        assert str(sampled(host).allowed[0]) == "0,4"
        assert len(first_seen) == 2  # with the one that the driver has
    finally:
        domain.destroy()
        host.close()
        outside.close()
