"""The rules of placement: what is managed, who is held, and what is reserved for whom."""

import dataclasses

import pytest

from vcpusched.model import ALL_CPUS, NO_CPUS, Cpu, CpuSet, DomainUuid, Granularity, Topology
from vcpusched.observe.placement_rules import Eligibility, Placement, PlacementRules, why_unclear
from vcpusched.sample import Definition, DomainReading, Origin, Sample, Unread, VcpuReading


def cpus(text: str) -> CpuSet:
    """Read a list of pCPUs."""
    return CpuSet.parse(text)


def guest(name: str, *affinities: str, **said: object) -> DomainReading:
    """Give a guest whose vCPUs have these affinities; `said` is what its definition says."""
    allowed = dict.fromkeys(range(len(affinities)), ALL_CPUS)
    definition = dataclasses.replace(Definition(allowed), **said)  # type: ignore[arg-type]
    readings = tuple(VcpuReading(vcpu, 0, cpus(mask)) for vcpu, mask in enumerate(affinities))
    return DomainReading(DomainUuid(name), 1, name, 0, readings, definition)


def sample(*domains: DomainReading, isolated: str = "", nodes: int = 0) -> Sample:
    """Give a host with eight pCPUs, alternately on so many nodes; 0: on none that is known."""
    topology = Topology(tuple(Cpu(cpu, cpu % nodes if nodes else None) for cpu in range(8)))
    return Sample(topology, domains, isolated=cpus(isolated))


def eligibilities(
    *domains: DomainReading, rules: PlacementRules | None = None, isolated: str = "", nodes: int = 0
) -> list[Eligibility]:
    """Judge all vCPUs, guest by guest."""
    seen = sample(*domains, isolated=isolated, nodes=nodes)
    placement = Placement.of(rules or PlacementRules(), seen)
    return [
        placement.eligibility(domain, reading) for domain in domains for reading in domain.vcpus
    ]


def eligibility(domain: DomainReading, *others: DomainReading, **options: object) -> Eligibility:
    """Judge the first vCPU of a guest beside others."""
    return eligibilities(domain, *others, **options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("named", "managed", "by_kernel", "not_named"),
    [
        ("all,^isolated", "0-5", "6-7", ""),
        ("all", "0-7", "", ""),
        ("all,^0", "1-7", "", "0"),
        ("4-11", "4-7", "", "0-3"),  # named: managed, though isolated; 8-11 are offline
        ("0-6,^isolated", "0-5", "6", "7"),
        ("all,^isolated,7", "0-5,7", "6", ""),  # what is further right decides
        ("^isolated,all", "0-7", "", ""),
        ("isolated", "6-7", "", "0-5"),
        ("isolated,^6-7", "", "", "0-7"),
    ],
)
def test_managed_pcpus(named: str, managed: str, by_kernel: str, not_named: str) -> None:
    """Of eight pCPUs of which the kernel isolates 6 and 7; and why the others are left alone."""
    placement = Placement.of(PlacementRules(named), sample(isolated="6-7"))
    assert str(placement.managed) == managed
    reasons = {"isolated by the kernel": cpus(by_kernel), "not in cpus": cpus(not_named)}
    found = {why: left for why, left in reasons.items() if left}
    assert placement.left_alone == found


def test_nothing_holds_a_guest() -> None:
    """Bound or floating, it may go to every pCPU."""
    for affinity in ("3", "0-7"):
        assert eligibility(guest("web", affinity)) == Eligibility(cpus("0-7"))


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ("hold", "held by its metadata"),
        (
            "holdd",
            'its metadata says policy="holdd", which is none of balance, hold, spread',
        ),
        ("Hold", 'its metadata says policy="Hold", which is none of balance, hold, spread'),
        ("", "its metadata says no policy, which must be one of balance, hold, spread"),
        ("\x1b[31m", 'its metadata says policy="?[31m", which is none of balance, hold, spread'),
    ],
)
def test_metadata_that_holds(wish: str, why: str) -> None:
    """What is not understood holds: a typo in "hold" must not move the guest."""
    assert eligibility(guest("web", "3", wish=wish)) == Eligibility(
        cpus("0-7"), fixed=True, why=why
    )
    assert why_unclear(Definition(wish=wish)) == ("" if wish == "hold" else why)


def test_metadata_that_does_not_hold() -> None:
    """It outranks the lists of domains, both ways."""
    rules = PlacementRules(exclude_domains=("*",))
    found = eligibility(guest("web", "3", wish="balance"), rules=rules)
    assert found == Eligibility(cpus("0-7"), why="its metadata asks for balance")
    found = eligibility(guest("web", "3", wish="spread"), rules=rules)
    assert found == Eligibility(cpus("0-7"), why="its metadata asks for spread")
    found = eligibility(
        guest("web", "3", wish="hold"), rules=PlacementRules(include_domains=("web",))
    )
    assert found.fixed


@pytest.mark.parametrize(
    ("included", "excluded", "why"),
    [
        (("*",), (), ""),
        (("web*", "db"), (), ""),
        (("WEB*",), (), "not in include_domains"),
        ((), (), "not in include_domains"),
        (("*",), ("db*", "web[0-9]"), 'excluded by "web[0-9]" in exclude_domains'),
        (("web1",), ("web1",), 'excluded by "web1" in exclude_domains'),
        (("*",), ("web",), ""),
    ],
)
def test_lists_of_domains(included: tuple[str, ...], excluded: tuple[str, ...], why: str) -> None:
    """Globs, in which letters count as they are; who is in both lists is excluded."""
    rules = PlacementRules(include_domains=included, exclude_domains=excluded)
    assert eligibility(guest("web1", "3"), rules=rules).why == why


def test_the_definition_is_never_left() -> None:
    """Whatever the administrator names, targets are within the definition."""
    rules = PlacementRules("0-5")
    found = eligibility(guest("web", "2", allowed={0: cpus("2-3,6")}), rules=rules)
    assert found == Eligibility(cpus("2-3"))
    found = eligibility(guest("web", "2", allowed={0: cpus("6-7")}), rules=rules)
    assert (found.allowed, found.why) == (NO_CPUS, "its definition allows no managed pCPU")
    found = eligibility(guest("web", "2", allowed={0: cpus("2")}))
    assert (found.fixed, found.why) == (True, "its definition allows no other managed pCPU")
    found = eligibility(guest("web", "2", allowed={1: cpus("0-7")}))
    assert (found.fixed, found.why) == (True, "its definition does not name it")
    found = eligibility(guest("web", "2", allowed={}))
    assert (found.fixed, found.why) == (True, "its definition could not be read")


def strict(affinity: str, *nodes: int, allowed: str | None = None) -> DomainReading:
    """Give a guest of one vCPU whose memory is strictly on these nodes; none: on unknown ones."""
    said: dict[str, object] = {"memory_strict": {0: frozenset(nodes)}}
    if nodes:
        said["memory_nodes"] = {0: frozenset(nodes)}
    if allowed is not None:
        said["allowed"] = {0: cpus(allowed)}
    return guest("web", affinity, **said)


def test_strict_memory_is_never_left() -> None:
    """Of two nodes, 1 has the odd pCPUs: nowhere else, bound or floating, and whatever says so."""
    why = "its memory must be on node 1"
    for affinity in ("3", "0-7"):
        assert eligibility(strict(affinity, 1), nodes=2) == Eligibility(cpus("1,3,5,7"), why=why)
    rules = PlacementRules("0-3")
    assert str(eligibility(strict("3", 1), rules=rules, nodes=2).allowed) == "1,3"
    assert str(eligibility(strict("3", 1, allowed="2-6"), nodes=2).allowed) == "3,5"
    # Where all that is managed is near, it narrows nothing.
    rules = PlacementRules("1,3")
    assert eligibility(strict("3", 1), rules=rules, nodes=2) == Eligibility(cpus("1,3"))
    assert eligibility(strict("3", 0, 1), nodes=2) == Eligibility(cpus("0-7"))
    assert eligibility(strict("3", 0, 1), nodes=4).why == "its memory must be on nodes 0-1"
    wished = dataclasses.replace(strict("3", 1).definition, wish="balance")
    told = eligibility(dataclasses.replace(strict("3", 1), definition=wished), nodes=2).why
    assert told == f"its metadata asks for balance, {why}"
    # Asked for, but not strictly: that has a price.
    preferred = guest("web", "3", memory_nodes={0: frozenset({1})})
    assert eligibility(preferred, nodes=2) == Eligibility(cpus("0-7"))


def test_whose_memory_is_strictly_elsewhere_may_come_home() -> None:
    """Bound to pCPU 2 of node 0 it may go to node 1, and only there; if it can, or it stays."""
    found = eligibility(strict("2", 1), nodes=2)
    assert (str(found.allowed), found.fixed) == ("1,3,5,7", False)
    found = eligibility(strict("2", 1, allowed="0,2,4"), nodes=2)
    assert (found.allowed, found.fixed, found.why) == (
        NO_CPUS,
        True,
        "its definition allows no managed pCPU of node 1, where its memory must be",
    )


def test_whose_memory_is_strictly_here_and_has_no_other_pcpu() -> None:
    """Its definition allows one of that node, or the others are dedicated to another guest."""
    found = eligibility(strict("3", 1, allowed="2-4"), nodes=2)
    assert (found.fixed, found.why) == (
        True,
        "its definition allows no other managed pCPU of node 1, where its memory must be",
    )
    pinned = guest("pinned", "1", "5", "7", allowed=dict(enumerate(map(cpus, "157"))))
    assert eligibility(strict("3", 1), pinned, nodes=2).why == "all other pCPUs are reserved"


def test_strict_memory_on_nodes_that_nobody_reports() -> None:
    """It stays, unless there is only one node to be on."""
    for found, why in (
        (eligibility(strict("3"), nodes=2), "the nodes that numad chose for its memory"),
        (eligibility(strict("3")), "the nodes that numad chose for its memory"),
        (eligibility(strict("3", 2), nodes=2), "node 2"),
        (eligibility(strict("3", 0)), "node 0"),
    ):
        assert (found.fixed, found.why) == (True, f"which pCPUs are on {why} is not known")
    assert eligibility(strict("3"), nodes=1) == Eligibility(cpus("0-7"))
    assert eligibility(strict("3", 0), nodes=1) == Eligibility(cpus("0-7"))


def test_each_cell_of_a_guest_has_memory_of_its_own() -> None:
    """The first vCPU is beside the memory of node 0, the second of node 1, the third anywhere."""
    nodes = {0: frozenset({0}), 1: frozenset({1})}
    celled = guest("web", "3", "3", "3", memory_nodes=nodes, memory_strict=nodes)
    found = eligibilities(celled, nodes=2)
    assert [str(one.allowed) for one in found] == ["0,2,4,6", "1,3,5,7", "0-7"]


def test_pools() -> None:
    """Several pCPUs that are not the definition's are someone's choice, such as numad's."""
    found = eligibility(guest("web", "0-3"))
    assert found == Eligibility(cpus("0-3"), fixed=True, why="someone else keeps it on pCPUs 0-3")
    assert eligibility(guest("web", "0-3", allowed={0: cpus("0-3")})) == Eligibility(cpus("0-3"))
    # A definition wider than what is managed, and the kernel's isolated pCPUs left out by libvirt.
    assert not eligibility(guest("web", "0-7"), rules=PlacementRules("0-3")).fixed
    for affinity in ("0-7", "0-5"):
        for rules in (PlacementRules(), PlacementRules("all")):
            assert not eligibility(guest("web", affinity), rules=rules, isolated="6-7").fixed


def test_a_vcpu_on_a_pcpu_that_is_not_managed_stays() -> None:
    """Someone put it there; what is not managed is not our business."""
    found = eligibility(guest("web", "6"), rules=PlacementRules("0-3"))
    assert (found.fixed, found.why) == (True, "it is on pCPU 6, which is not managed")


def test_realtime_vcpus_are_never_moved_and_keep_their_pcpus() -> None:
    """The others of their guest may be, but nobody joins a realtime one."""
    realtime = guest("rt", "2", "3", realtime=frozenset({0}))
    first, second, other = eligibilities(realtime, guest("web", "0"))
    assert (first.fixed, first.why) == (True, "a realtime vCPU")
    assert (second.fixed, str(second.allowed)) == (False, "0-1,3-7")
    assert str(other.allowed) == "0-1,3-7"


def test_what_the_definition_gives_a_realtime_guest_is_its_own() -> None:
    """Also where its other vCPUs may be; but not the whole host, if that is what it says."""
    masks = {0: cpus("2"), 1: cpus("3-4")}
    narrow = guest("rt", "2", "3", allowed=masks, realtime=frozenset({0}))
    assert str(eligibility(guest("web", "0"), narrow).allowed) == "0-1,5-7"
    wide = guest("rt", "0-7", "0-7", realtime=frozenset({0}))
    assert str(eligibility(guest("web", "0"), wide).allowed) == "0-7"


def test_dedicated_pcpus() -> None:
    """A pCPU given to a single vCPU is nobody else's target, unless that one's definition names it.

    One that a definition gives to two vCPUs is shared, and a mask of several pCPUs is a pool.
    """
    pinned = guest("pinned", "4", "5", "5", allowed=dict(enumerate(map(cpus, ("4", "5", "5")))))
    pooled = guest("pooled", "6", allowed={0: cpus("6-7")})
    assert str(eligibility(guest("web", "0"), pinned, pooled).allowed) == "0-3,5-7"
    named = guest("web", "0", allowed={0: cpus("0,4")})
    assert str(eligibility(named, pinned, pooled).allowed) == "0,4"


def test_isolated_pcpus_are_for_those_that_name_them() -> None:
    """Managed since nothing is excluded; who names no pCPU is not put there all the same."""
    rules = PlacementRules("all")
    named = guest("named", "6", allowed={0: cpus("6-7")})
    first, other = eligibilities(named, guest("web", "0"), rules=rules, isolated="6-7")
    assert (first, str(other.allowed)) == (Eligibility(cpus("6-7")), "0-5")
    # By default they are not managed, so even who is bound there by its definition is left alone.
    assert eligibility(named, isolated="6-7").why == "its definition allows no managed pCPU"
    placement = Placement.of(rules, sample(named, isolated="6-7"))
    assert [cpu.id for cpu in placement.cpus if cpu.isolated] == [6, 7]


def test_tickless_pcpus_are_spared_like_isolated_ones_and_balanced_by_the_kernel() -> None:
    """Not managed by default, and else for those that name them; who floats there is in no pool."""
    named = guest("named", "6", allowed={0: cpus("6-7")})
    seen = dataclasses.replace(
        sample(named, guest("web", "0"), guest("floats", "0-7")), tickless=cpus("6-7")
    )
    placement = Placement.of(PlacementRules("all"), seen)
    assert not any(cpu.isolated for cpu in placement.cpus)
    found = [placement.eligibility(domain, domain.vcpus[0]) for domain in seen.domains]
    assert [(str(one.allowed), one.fixed) for one in found] == [
        ("6-7", False),
        ("0-5", False),
        ("0-5", False),
    ]
    assert str(Placement.of(PlacementRules(), seen).managed) == "0-5"


def test_the_cpuset_bounds_the_definition() -> None:
    """Within it a guest is balanced; a floater that has all of it keeps to no pool."""
    within = {"cpuset": cpus("2-6")}
    assert eligibility(guest("web", "2", **within)) == Eligibility(cpus("2-6"))
    assert eligibility(guest("web", "2-6", **within)) == Eligibility(cpus("2-6"))
    assert eligibility(guest("web", "2", allowed={0: cpus("0-3")}, **within)) == Eligibility(
        cpus("2-3")
    )
    rules = PlacementRules("all")
    for affinity in ("2-5", "2-6"):  # libvirt leaves isolated ones out
        assert not eligibility(guest("web", affinity, **within), rules=rules, isolated="6-7").fixed
    found = eligibility(guest("web", "3-4", **within))
    assert found.why == "someone else keeps it on pCPUs 3-4"
    said = "its definition, cut to its cpuset,"
    found = eligibility(guest("web", "2", allowed={0: cpus("0-2")}, **within))
    assert (found.fixed, found.why) == (True, f"{said} allows no other managed pCPU")
    found = eligibility(guest("web", "2", allowed={0: cpus("0-1")}, **within))
    assert (found.fixed, found.why) == (True, f"{said} allows no managed pCPU")


def test_what_no_guests_cpuset_has_is_not_managed() -> None:
    """And that is reported; what one guest may use is, also while another may not."""
    narrow, wide = guest("a", "2", cpuset=cpus("2-3")), guest("b", "2", cpuset=cpus("2-6"))
    placement = Placement.of(PlacementRules("all,^6"), sample(narrow, wide, isolated="5"))
    assert str(placement.managed) == str(CpuSet.of(cpu.id for cpu in placement.cpus)) == "2-5"
    assert {why: str(left) for why, left in placement.left_alone.items()} == {
        "outside the guests' cpuset": "0-1,7",
        "not in cpus": "6",
    }
    assert [str(one.allowed) for one in eligibilities(narrow, wide)] == ["2-3", "2-6"]
    # Nobody there is no bound.
    assert str(Placement.of(PlacementRules(), sample()).managed) == "0-7"


def test_a_guest_whose_cpuset_is_not_known_widens_nothing() -> None:
    """It may be in the cpuset of the others; where none is known, all pCPUs are managed."""
    hidden = guest("hidden", "2", is_cpuset_known=False)
    narrow = guest("a", "2", cpuset=cpus("2-3"))
    for seen, managed in ((sample(hidden, narrow), "2-3"), (sample(hidden), "0-7")):
        assert str(Placement.of(PlacementRules(), seen).managed) == managed


def test_a_move_out_of_the_cpuset_is_objected_to() -> None:
    """By a definition read anew, with the cpuset as it is now."""
    placement = Placement.of(PlacementRules(), sample(guest("web", "2")))
    now = Definition({0: ALL_CPUS}, cpuset=cpus("2-3"))
    assert placement.objection("web", now, 0, cpus("3")) == ""
    assert "does not allow this pCPU" in placement.objection("web", now, 0, cpus("1"))


def test_a_realtime_guests_other_threads_keep_their_pcpus() -> None:
    """Emulator and I/O threads; not where they may be anywhere, nor those of other guests."""
    helpers = (cpus("4"), cpus("5"), cpus("0-7"))
    masks = {0: cpus("2"), 1: cpus("3")}
    realtime = guest("rt", "2", "3", allowed=masks, realtime=frozenset({0, 1}), helper_pins=helpers)
    assert str(eligibility(guest("web", "0"), realtime).allowed) == "0-1,6-7"
    usual = guest("usual", "2", "3", helper_pins=helpers)
    assert str(eligibility(guest("web", "0"), usual).allowed) == "0-7"


@pytest.mark.parametrize("realtime", [frozenset(), frozenset({0})])
def test_a_definition_for_the_next_boot_reserves_nothing_yet(realtime: frozenset[int]) -> None:
    """Edited from 2 to 6 while the guest runs on 2; where we moved it to 6 since, it has both."""
    edited = {"allowed": {0: cpus("6")}, "realtime": realtime}
    running = guest("pinned", "2", booked={0: cpus("2")}, **edited)
    assert str(eligibility(guest("web", "0"), running).allowed) == "0-1,3-7"
    mark = {0: Origin(cpus("2"), frozenset({cpus("3"), cpus("6")}))}
    moved = guest("pinned", "6", booked={0: cpus("6")}, origin=mark, **edited)
    assert str(eligibility(guest("web", "0"), moved).allowed) == "0-1,3-5,7"
    ours = guest("pinned", "3", booked={0: cpus("3")}, origin=mark, **edited)
    reserved = "2-3" if realtime else "2"  # nobody joins a realtime vCPU, wherever it is
    left = cpus("0-7") - cpus(reserved)
    assert eligibility(guest("web", "0"), ours).allowed == left
    booted = guest("pinned", "6", booked={0: cpus("6")}, **edited)
    assert str(eligibility(guest("web", "0"), booted).allowed) == "0-5,7"


def test_a_live_pin_dedicates_nothing() -> None:
    """Only a definition does: who has several pCPUs by that is somewhere, and may be elsewhere."""
    pinned = guest("pooled", "4", allowed={0: cpus("4-5")}, booked={0: cpus("4")})
    assert str(eligibility(guest("web", "0"), pinned).allowed) == "0-7"


def test_nowhere_to_go() -> None:
    """All pCPUs but its own are reserved, or all of them."""
    masks = dict(enumerate(map(cpus, "1234567")))
    pinned = guest("pinned", *"1234567", allowed=masks)
    assert eligibility(guest("web", "0"), pinned).why == "all other pCPUs are reserved"
    all_of_them = guest("pinned", *"01234567", allowed=dict(enumerate(map(cpus, "01234567"))))
    found = eligibility(guest("web", "0-7"), all_of_them)
    assert (found.fixed, found.why) == (True, "all pCPUs that it may use are reserved")


def test_a_definition_widened_for_the_next_boot_reserves_what_the_guest_began_with() -> None:
    """As long as it runs there, or would but for a pin of ours; once it is let go, nothing."""
    began = {"began": {0: cpus("2")}}
    running = guest("pinned", "2", booked={0: cpus("2")}, **began)
    mark = {0: Origin(cpus("2"), frozenset({cpus("3")}))}
    moved = guest("pinned", "3", booked={0: cpus("3")}, origin=mark, **began)
    for domain in (running, moved):
        assert str(Placement.of(PlacementRules(), sample(domain)).reserved) == "2"
    let_go = guest("pinned", "0-7", booked={0: ALL_CPUS}, **began)
    assert not Placement.of(PlacementRules(), sample(let_go)).reserved


def test_a_guest_that_cannot_be_read_keeps_what_is_reserved_for_it() -> None:
    """And loses it when it has ended."""
    pinned = guest("pinned", "4", allowed={0: cpus("4")})
    before = Placement.of(PlacementRules(), sample(pinned))
    unread = dataclasses.replace(sample(), unread={DomainUuid("pinned"): Unread("pinned", "busy")})
    again = Placement.of(PlacementRules(), unread, before)
    assert str(again.reserved) == "4"
    assert str(Placement.of(PlacementRules(), unread, again).reserved) == "4"
    assert not Placement.of(PlacementRules(), sample(), again).reserved


def test_objections_to_a_move() -> None:
    """By a definition read anew just before it."""
    placement = Placement.of(PlacementRules(), sample(guest("pinned", "4", allowed={0: cpus("4")})))
    free, there = Definition({0: ALL_CPUS}), cpus("1")
    assert placement.objection("web", free, 0, there) == ""
    assert placement.objection("web", free, 0, cpus("4")) != ""
    assert placement.objection("web", free, 1, there) == "its definition does not name it"
    held = dataclasses.replace(free, wish="hold")
    assert placement.objection("web", held, 0, there) == "held by its metadata"
    realtime = dataclasses.replace(free, realtime=frozenset({0}))
    assert placement.objection("web", realtime, 0, there) == "a realtime vCPU"
    strictly = dataclasses.replace(free, memory_strict={0: frozenset()})
    assert "is not known" in placement.objection("web", strictly, 0, there)
    narrow = Definition({0: cpus("2-3")})
    assert "does not allow this pCPU" in placement.objection("web", narrow, 0, there)


@pytest.mark.parametrize(
    ("ours", "is_reconciled", "why"),
    [(True, True, ""), (False, True, "someone else keeps it on pCPUs 0-3"), (False, False, "")],
)
def test_own_sets_and_pools_are_distinguished(*, ours: bool, is_reconciled: bool, why: str) -> None:
    """A set that could be a pin of ours is one if the ledger says so, or if nobody keeps one."""
    topology = Topology(tuple(Cpu(cpu, cache=cpu // 4) for cpu in range(8)))
    domain = guest("a", "0-3")
    readings = (dataclasses.replace(domain.vcpus[0], ours=ours),)
    domain = dataclasses.replace(domain, vcpus=readings)
    seen = Sample(topology, (domain,), is_reconciled=is_reconciled)
    placement = Placement.of(PlacementRules(granularity=Granularity.CACHE), seen)
    found = placement.eligibility(seen.domains[0], readings[0])
    assert (found.fixed, found.why) == (bool(why), why)


def test_who_is_held_is_fixed() -> None:
    """Whatever its definition and metadata say."""
    domain = guest("a", "0", wish="balance")
    readings = (dataclasses.replace(domain.vcpus[0], held="someone else pinned it"),)
    found = eligibility(dataclasses.replace(domain, vcpus=readings))
    assert (found.fixed, found.why) == (True, "someone else pinned it")
