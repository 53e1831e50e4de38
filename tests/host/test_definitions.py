"""The definitions of guests: when they are read anew, and as whom libvirt runs a guest."""

import os
import pwd
from dataclasses import replace

import pytest

from vcpusched.host.cgroups import Limits
from vcpusched.host.definitions import MAX_AGE_NS, Definitions, FirstSeen
from vcpusched.host.hypervisor import HypervisorError
from vcpusched.model import CpuSet, DomainUuid
from vcpusched.sample import Definition, Origin

S = 1_000_000_000
GUESTS = [(DomainUuid(f"6f2b0c1e-0000-4000-8000-{index:012}"), index) for index in range(100)]
KEY = GUESTS[0]
XML = "<domain><vcpu cpuset='0-3'>2</vcpu>{}</domain>"
LABEL = "<seclabel type='dynamic' model='dac' relabel='yes'><label>{}</label></seclabel>"


def test_a_definition_is_read_anew_within_a_minute_and_not_all_at_once() -> None:
    """A hundred guests are first seen in one sample; then a few are due in each."""
    definitions = Definitions({}, 100)
    assert all(definitions.is_due(key, 0) for key in GUESTS)
    for key in GUESTS:
        definitions.learn(key, XML.format(""), XML.format(""), 0)
    read_ns = dict.fromkeys(GUESTS, 0)
    for now_ns in range(0, 300 * S, 3 * S):
        due = [key for key in GUESTS if definitions.is_due(key, now_ns)]
        assert len(due) < 20  # of 100, in 20 samples a minute
        for key in due:
            assert now_ns - read_ns[key] < MAX_AGE_NS + 3 * S
            definitions.learn(key, XML.format(""), XML.format(""), now_ns)
            read_ns[key] = now_ns
    assert min(read_ns.values()) >= 300 * S - MAX_AGE_NS - 3 * S


def test_a_definition_that_cannot_be_read_stays_as_it_is_known() -> None:
    """An empty one where none was; it is asked for again when its moment comes."""
    definitions = Definitions({}, 100)
    definitions.postpone(KEY, 0)
    assert not definitions.is_due(KEY, 0)
    assert definitions.is_due(KEY, MAX_AGE_NS)
    unknown = Definition(is_cpuset_known=False)
    assert definitions.of(KEY) == unknown
    definitions.learn(KEY, XML.format(""), XML.format(""), 0)
    found = definitions.of(KEY)
    definitions.postpone(KEY, 5)
    assert definitions.of(KEY) == found
    with pytest.raises(HypervisorError):
        definitions.learn(KEY, "<domain", None, 6)
    assert definitions.of(KEY) == found
    definitions.forget_all_but([])
    assert definitions.of(KEY) == unknown
    assert definitions.is_due(KEY, 5)


def test_a_mark_that_was_written_is_in_the_definition() -> None:
    """Until it is read anew; of a guest that is not known nothing is."""
    definitions = Definitions({}, 100)
    mark = {0: Origin(CpuSet.of([0]), frozenset({CpuSet.of([1])}))}
    definitions.marked(KEY, mark)
    assert definitions.of(KEY) == Definition(is_cpuset_known=False)
    definitions.learn(KEY, XML.format(""), XML.format(""), 0)
    known = definitions.of(KEY)
    definitions.marked(KEY, mark)
    assert definitions.of(KEY) == replace(known, origin=mark)
    definitions.learn(KEY, XML.format(""), XML.format(""), 1)
    assert definitions.of(KEY) == known


def test_the_kernel_bounds_what_libvirt_says() -> None:
    """A guest's groups outrank its definition, and a quota of them the higher one of libvirt's."""
    definitions = Definitions({}, 100)
    definitions.learn(KEY, XML.format(""), XML.format(""), 0)
    assert definitions.of(KEY).shares == 100
    definitions.bound(KEY, Limits(CpuSet.of([2, 3]), 300, 500_000))
    found = definitions.of(KEY)
    assert (found.cpuset, found.shares, found.quota_ppm) == (CpuSet.of([2, 3]), 300, 500_000)
    assert found.allowed[0] == CpuSet.of(range(4))
    definitions.bound(KEY, Limits())
    assert definitions.of(KEY).shares == 300


def test_what_a_run_began_with_outlives_an_edit_and_a_connection() -> None:
    """The definition was widened for the next boot; another run begins with that."""
    first_seen: FirstSeen = {}
    narrow = XML.format("<cputune><vcpupin vcpu='0' cpuset='2'/></cputune>")
    Definitions(first_seen, 100).learn(KEY, narrow, narrow, 0)
    definitions = Definitions(first_seen, 100)
    for key, began in ((KEY, CpuSet.of([2])), ((KEY[0], KEY[1] + 1), CpuSet.of(range(4)))):
        definitions.learn(key, narrow, XML.format(""), 1)
        assert definitions.of(key).allowed[0] == CpuSet.of(range(4))
        assert definitions.of(key).began[0] == began
    definitions.forget_all_but([])
    assert not first_seen


def test_the_cpuset_of_a_guest_is_not_known_before_its_groups_are() -> None:
    """Nor after a definition was read anew, or could not be."""
    definitions = Definitions({}, 100)
    assert not definitions.of(KEY).is_cpuset_known
    definitions.learn(KEY, XML.format(""), None, 0)
    assert not definitions.of(KEY).is_cpuset_known
    definitions.bound(KEY, Limits())
    assert definitions.of(KEY).is_cpuset_known
    definitions.postpone(KEY, 1)
    assert not definitions.of(KEY).is_cpuset_known


@pytest.mark.parametrize(
    ("label", "user"),
    [
        ("+107:+107", 107),
        ("64055:994", 64055),
        (f"{pwd.getpwuid(os.getuid()).pw_name}:root", os.getuid()),
        ("nobody of that name:root", None),
        ("", None),
    ],
)
def test_as_whom_libvirt_runs_a_guest(label: str, user: int | None) -> None:
    """Its DAC label in the live XML says so, as libvirt or as an administrator writes it."""
    definitions = Definitions({}, 100)
    other = "<seclabel type='dynamic' model='apparmor'><label>libvirt-6f2b</label></seclabel>"
    definitions.learn(KEY, XML.format(other + LABEL.format(label)), None, 0)
    assert definitions.user_of(KEY) == user


def test_without_a_label_no_user_is_named() -> None:
    """As in a session."""
    definitions = Definitions({}, 100)
    assert definitions.user_of(KEY) is None
    definitions.learn(KEY, XML.format("<seclabel type='none' model='dac'/>"), None, 0)
    assert definitions.user_of(KEY) is None
