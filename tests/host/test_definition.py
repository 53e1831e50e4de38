"""What a domain's definition says, from XML as libvirt 9 to 12 gives it."""

import pytest

from vcpusched.host.libvirt_xml import ORIGIN, combined, origin_xml, read_definition
from vcpusched.model import ALL_CPUS, PPM, CpuSet
from vcpusched.sample import Definition, Origin

ONLINE = CpuSet.parse("0-7")


def defined(inner: str) -> Definition:
    """Read a definition that holds this."""
    return read_definition(f"<domain type='kvm'><name>g</name>{inner}</domain>")


def allowed(inner: str) -> dict[int, str]:
    """Give where each vCPU may run, by a definition that holds this."""
    return {vcpu: str(cpus & ONLINE) for vcpu, cpus in defined(inner).allowed.items()}


def test_without_any_pin_all_pcpus_are_allowed() -> None:
    """A definition that says nothing allows everything; without <vcpu> there is one vCPU."""
    assert defined("<vcpu placement='static'>2</vcpu>") == Definition({0: ALL_CPUS, 1: ALL_CPUS})
    assert allowed("") == {0: "0-7"}


def test_a_cpuset_holds_for_all_vcpus_and_a_pin_outranks_it() -> None:
    """The order is libvirt's: <vcpupin>, else <vcpu cpuset>; up to the maximum of vCPUs."""
    assert allowed(
        "<vcpu placement='static' cpuset='0-3,^2' current='1'>3</vcpu>"
        "<cputune><vcpupin vcpu='1' cpuset='6'/><emulatorpin cpuset='0'/></cputune>"
    ) == {0: "0-1,3", 1: "6", 2: "0-1,3"}


def test_a_pinned_emulator_pins_no_vcpu() -> None:
    """<emulatorpin> and <iothreadpin> are about other threads."""
    pins = "<emulatorpin cpuset='0'/><iothreadpin iothread='1' cpuset='1-2'/>"
    tuned = f"<vcpu>2</vcpu><cputune>{pins}</cputune>"
    assert allowed(tuned) == {0: "0-7", 1: "0-7"}
    assert [str(mask) for mask in defined(tuned).helper_pins] == ["0", "1-2"]


def test_placement_auto_states_no_cpuset() -> None:
    """What numad advised is no part of the definition, and libvirt ignores a cpuset beside it."""
    assert allowed("<vcpu placement='auto' cpuset='1'>1</vcpu>") == {0: "0-7"}
    assert allowed(
        "<vcpu placement='auto'>1</vcpu><numatune><memory mode='strict'"
        " placement='auto'/></numatune>"
    ) == {0: "0-7"}


def test_masks_beyond_64_pcpus() -> None:
    """A definition may name pCPUs far up, and such that are offline now."""
    assert str(defined("<vcpu cpuset='60-70,300'>1</vcpu>").allowed[0]) == "60-70,300"


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain",
        "<domain><vcpu>many</vcpu></domain>",
        "<domain><vcpu cpuset='a'>1</vcpu></domain>",
        "<domain><vcpu>1</vcpu><cputune><vcpupin cpuset='1'/></cputune></domain>",
        "<domain><vcpu>1</vcpu><cputune><vcpupin vcpu='0' cpuset='99999'/></cputune></domain>",
        "<domain><numatune><memory nodeset='x'/></numatune></domain>",
        "<domain><cputune><quota>much</quota></cputune></domain>",
    ],
)
def test_a_definition_that_cannot_be_understood(xml: str) -> None:
    """It is an error, reported as such."""
    with pytest.raises(ValueError, match=r"\S"):
        read_definition(xml)


def test_realtime_vcpus() -> None:
    """Those with fifo or rr; batch and idle are no realtime schedulers."""
    tune = (
        "<vcpusched vcpus='0-1,^1' scheduler='fifo' priority='1'/>"
        "<vcpusched vcpus='2' scheduler='rr' priority='1'/>"
        "<vcpusched vcpus='3' scheduler='batch'/>"
        "<emulatorsched scheduler='fifo' priority='1'/>"
    )
    assert defined(f"<vcpu>4</vcpu><cputune>{tune}</cputune>").realtime == {0, 2}


@pytest.mark.parametrize(
    ("inner", "nodes", "strict", "node"),
    [
        ("", set(), False, None),
        ("<memory mode='strict' nodeset='1'/>", {1}, True, 1),
        ("<memory nodeset='0,2'/>", {0, 2}, True, None),
        ("<memory mode='restrictive' nodeset='1'/>", {1}, True, 1),
        ("<memory mode='preferred' nodeset='0'/>", {0}, False, 0),
        ("<memory mode='interleave' nodeset='0-1'/>", {0, 1}, False, None),
        ("<memory mode='strict' placement='auto'/>", set(), True, None),
        ("<memory mode='strict' placement='auto' nodeset='1'/>", set(), True, None),
        ("<memory mode='preferred' placement='auto'/>", set(), False, None),
        ("<memnode cellid='0' mode='strict' nodeset='2'/>", {2}, True, 2),
    ],
)
def test_where_the_memory_is(
    inner: str, nodes: set[int], *, strict: bool, node: int | None
) -> None:
    """The nodes that the definition names; a node of the guest only where that is one.

    What numad chose is not in the definition.
    """
    found = defined(f"<numatune>{inner}</numatune>")
    assert found.memory_nodes.get(0, set()) == nodes
    assert (set(found.memory_strict) == {0}, found.memory_node(0)) == (strict, node)


CELLS = "<cpu><numa><cell id='0' cpus='0-1'/><cell cpus='2,3'/></numa></cpu>"


@pytest.mark.parametrize(
    ("inner", "nodes", "strict"),
    [
        ("<memory mode='strict' nodeset='0-1'/>", [{0, 1}] * 5, {0, 1, 2, 3, 4}),
        (
            "<memnode cellid='0' nodeset='0'/><memnode cellid='1' mode='strict' nodeset='1'/>",
            [{0}, {0}, {1}, {1}, {0, 1}],
            {0, 1, 2, 3, 4},
        ),
        (
            "<memory mode='preferred' nodeset='0'/><memnode cellid='1' nodeset='1'/>",
            [{0}, {0}, {1}, {1}, {0, 1}],
            {2, 3, 4},
        ),
        (
            "<memory mode='strict' nodeset='0'/><memnode cellid='1' mode='preferred' nodeset='1'/>",
            [{0}, {0}, {0}, {0}, {0, 1}],
            {0, 1, 2, 3, 4},
        ),
        (
            "<memory placement='auto'/><memnode cellid='1' nodeset='1'/>",
            [set(), set(), {1}, {1}, set()],
            {0, 1, 2, 3, 4},
        ),
    ],
)
def test_where_the_memory_of_a_guests_own_cells_is(
    inner: str, nodes: list[set[int]], strict: set[int]
) -> None:
    """Two cells of two vCPUs, the second numbered by its place, and a vCPU that is in none.

    Each is beside the memory of its cell, and that of the whole guest where its cell says nothing
    or the guest is stricter; who is in no cell beside all of it.
    """
    found = defined(f"<vcpu>5</vcpu><numatune>{inner}</numatune>{CELLS}")
    assert [found.memory_nodes.get(vcpu, set()) for vcpu in range(5)] == nodes
    assert set(found.memory_strict) == strict


def test_a_cell_may_prefer_one_of_the_nodes_that_the_guest_must_be_on() -> None:
    """Its vCPUs belong to that one, and may be near any of them."""
    found = defined(
        "<vcpu>4</vcpu><numatune><memory mode='strict' nodeset='0-3'/>"
        f"<memnode cellid='1' mode='preferred' nodeset='3'/></numatune>{CELLS}"
    )
    assert [found.memory_node(vcpu) for vcpu in range(4)] == [None, None, 3, 3]
    assert found.memory_strict == dict.fromkeys(range(4), frozenset(range(4)))


@pytest.mark.parametrize(
    ("inner", "quota_ppm"),
    [
        ("", PPM),
        ("<quota>-1</quota>", PPM),
        ("<quota>25000</quota>", PPM // 4),
        ("<period>50000</period><quota>25000</quota>", PPM // 2),
        ("<period>50000</period><quota>80000</quota>", PPM),
        ("<global_quota>10000</global_quota>", PPM),
    ],
)
def test_quotas(inner: str, quota_ppm: int) -> None:
    """Of each vCPU, by its period; none is a whole pCPU, more than which no vCPU can run."""
    assert defined(f"<cputune>{inner}</cputune>").quota_ppm == quota_ppm


def test_shares() -> None:
    """As the definition has them, else what a group has to which nobody gave any."""
    assert defined("<cputune><shares>2048</shares></cputune>").shares == 2048
    assert read_definition("<domain/>", usual_shares=100).shares == 100


def wish(element: str) -> str | None:
    """Give what a domain with this metadata asks for."""
    return defined(f"<metadata><other xmlns='urn:other'/>{element}</metadata>").wish


def test_what_a_domain_asks_for() -> None:
    """In our namespace only, whatever its prefix; an element without a policy is no silence."""
    assert wish("<v:domain xmlns:v='urn:vcpusched:domain:1' policy='hold'/>") == "hold"
    assert wish("<domain xmlns='urn:vcpusched:domain:1' policy=' Hold'/>") == " Hold"
    assert wish("<v:domain xmlns:v='urn:vcpusched:domain:1' polcy='hold'/>") == ""
    assert wish("<v:domain xmlns:v='urn:vcpusched:domain:2' policy='hold'/>") is None
    assert wish("<domain policy='hold'/>") is None


def test_live_and_stated() -> None:
    """Masks are those stated for good, the wish is the live one if there is one."""
    live = Definition({0: CpuSet.of([3])}, frozenset({0}), shares=512, wish="hold")
    stated = Definition({0: ONLINE}, frozenset({1}), shares=2048, wish="balance")
    found = combined(live, stated)
    booked = {0: CpuSet.of([3])}
    assert found == Definition(
        {0: ONLINE}, frozenset({0, 1}), shares=512, wish="hold", booked=booked
    )
    assert combined(Definition(), stated).wish == "balance"
    assert combined(live, Definition()).wish == "hold"


def test_the_mark_says_where_vcpus_were() -> None:
    """What is written is read back, beside what the administrator asks for."""
    pins = frozenset({CpuSet.parse("1,4-5"), CpuSet.of([3])})
    origin = {0: Origin(CpuSet.parse("0-2,7"), pins), 3: Origin(ALL_CPUS, pins)}
    # With only the element itself in the namespace, as others might write it.
    element = origin_xml(origin).replace("<origin>", f'<o:origin xmlns:o="{ORIGIN}">')
    element = element.replace("</origin>", "</o:origin>")
    wish = '<p:domain xmlns:p="urn:vcpusched:domain:1" policy="hold"/>'
    xml = f"<domain><vcpu>4</vcpu><metadata>{element}{wish}</metadata></domain>"
    found = read_definition(xml)
    assert found.origin == origin
    assert found.wish == "hold"


@pytest.mark.parametrize(
    "vcpus",
    [
        '<vcpu id="0" cpus="" pins="2"/>',
        '<vcpu id="x" cpus="1" pins="2"/>',
        '<vcpu id="-1" cpus="1" pins="2"/>',
        '<vcpu cpus="1" pins="2"/>',
        '<vcpu id="0" cpus="9-1" pins="2"/>',
        '<vcpu id="0" pins="2"/>',
        '<vcpu id="1" cpus="all" pins="2"/><vcpu id="0" cpus="none" pins="2"/>',
        '<vcpu id="0" cpus="1"/>',
        '<vcpu id="0" cpus="1" pins=""/>',
        '<vcpu id="0" cpus="1" pins="2 x"/>',
        '<vcpu id="0" cpus="1" pins="all"/>',
    ],
)
def test_a_mark_that_nobody_of_us_wrote_is_none(vcpus: str) -> None:
    """It neither moves a guest nor has it left out."""
    mark = f'<origin xmlns="{ORIGIN}">{vcpus}</origin>'
    assert (
        read_definition(f"<domain><vcpu>2</vcpu><metadata>{mark}</metadata></domain>").origin == {}
    )


def test_a_definition_made_of_a_running_guest() -> None:
    """Some managers take our pins into it; the mark in it says where the guest belongs.

    A person who pins it there afterwards is obeyed.
    """
    live = read_definition("<domain><vcpu>2</vcpu></domain>")
    for pins, allowed in (("1 3", ALL_CPUS), ("0 1", CpuSet.of([3]))):
        stated = read_definition(
            "<domain><vcpu>2</vcpu><metadata>"
            f'<origin xmlns="{ORIGIN}"><vcpu id="0" cpus="all" pins="{pins}"/></origin></metadata>'
            '<cputune><vcpupin vcpu="0" cpuset="3"/><vcpupin vcpu="1" cpuset="2"/></cputune>'
            "</domain>"
        )
        assert combined(live, stated).allowed == {0: allowed, 1: CpuSet.of([2])}
