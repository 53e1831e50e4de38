"""Why a guest is held or may be moved, and why each vCPU was moved or was not."""

import dataclasses

from builders import host, of_one_guest

from vcpusched.model import Cpu, CpuSet, Host, HostCpu
from vcpusched.plan.explain import explained, told, treatments_as_json
from vcpusched.plan.planner import Policy, plan


def change(drawn: Host, name: str, **changes: object) -> Host:
    """Change all vCPUs of a guest."""
    vcpus = (
        dataclasses.replace(vcpu, **changes) if vcpu.domain == name else vcpu  # type: ignore[arg-type]
        for vcpu in drawn.vcpus
    )
    return dataclasses.replace(drawn, vcpus=tuple(vcpus))


def why(drawn: Host, name: str, policy: Policy | None = None) -> str:
    """Say why the first vCPU of a guest is moved or is not."""
    return explained(drawn, plan(drawn, policy or Policy()), name)[0].text


def test_who_may_be_moved_and_who_may_not() -> None:
    """A line for each guest that is held and its reason; the others together."""
    drawn = of_one_guest(host([20, 20, 20, 20], [20]), "g0", "g4")
    drawn = change(drawn, "g1", fixed=True, why="held by its metadata")
    drawn = change(drawn, "g2", why="its metadata asks for balance")
    first, *others = drawn.vcpus
    drawn = dataclasses.replace(
        drawn, vcpus=(dataclasses.replace(first, fixed=True, why="a realtime vCPU"), *others)
    )
    assert told(drawn) == [
        "vCPU 0 of g0 stays: a realtime vCPU",
        "g1 stays: held by its metadata",
        "May be moved: vCPU 1 of g0, g2 (its metadata asks for balance), g3",
    ]
    assert [entry["movable"] for entry in treatments_as_json(drawn)] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert told(host([], [])) == []


def test_a_name_is_text() -> None:
    """It cannot forge a line."""
    assert told(change(host([20]), "g0", domain="a\nb")) == ["May be moved: a?b"]


def test_why_a_vcpu_is_moved_or_is_not() -> None:
    """The nearest reason, in one sentence."""
    crowded = host([30, 30, 30], [], [5])
    texts = [why(crowded, f"g{index}") for index in range(4)]
    moved = [text for text in texts if " is moved from pCPU 0 to pCPU " in text]
    assert moved
    assert all(": pCPU 0 was at " in text for text in moved)
    stays = "vCPU 0 (30 %) stays on pCPU 0, though it may use pCPUs 0-2: the plan balances the"
    assert any(text.startswith(stays) or "min_gain" in text for text in texts)
    assert why(host([30], [30]), "g0").endswith(": the host is balanced")
    assert why(host([90], []), "g0").endswith(
        ": it is alone on the busiest pCPU, and elsewhere it would be as busy"
    )
    held = change(crowded, "g0", fixed=True, why="a realtime vCPU")
    assert why(held, "g0").endswith(" and may not be moved: a realtime vCPU")
    assert why(host([30, 0, 60], []), "g1").endswith("it would change nothing")
    assert why(host([50, 50], [50]), "g2").endswith(": no move of it would gain min_gain")
    limited = Policy(max_moves=1)
    texts = [why(host([20, 20, 20, 20], []), f"g{index}", limited) for index in range(4)]
    assert sum(text.endswith(": max_moves ended the plan before it") for text in texts) == 3
    assert ": it floats, and the kernel spreads it" in why(
        change(host([95, 95, 95], []), "g0", cpus=CpuSet.parse("0-1")), "g0"
    )
    narrow = host([30, 30], [], allowed="0")
    assert why(narrow, "g0").endswith("though it may use pCPU 0: that is where it is")


def test_why_a_vcpu_stays_on_a_weak_pcpu() -> None:
    """A strong pCPU idles beside one that does 60 %: 50 are 83 % of that, and enough; 80 go."""
    for load, end in ((50, ": it is alone on its pCPU, which is enough for it"), (80, "80 %")):
        drawn = host([], [load])
        cpus = (HostCpu(Cpu(0)), HostCpu(Cpu(1, capacity_ppm=600_000)))
        assert why(dataclasses.replace(drawn, cpus=cpus), "g0").endswith(end)


def test_nobody_of_that_name() -> None:
    """No vCPU, no explanation; a UUID is as good as a name."""
    drawn = host([30], [30])
    found = plan(drawn, Policy())
    assert explained(drawn, found, "other") == []
    assert [one.vcpu for one in explained(drawn, found, "0001")] == [0]
