"""Why each vCPU was moved or was not, and why an unbalanced host rests."""

import dataclasses

from builders import change, host, of_caches, of_one_guest

from vcpusched.model import Cpu, CpuSet, Granularity, Host, HostCpu
from vcpusched.plan.explain import explained
from vcpusched.plan.planner import Floating, Policy, plan
from vcpusched.report.plan_text import settled


def why(drawn: Host, name: str, policy: Policy | None = None) -> str:
    """Say why the first vCPU of a guest is moved or is not."""
    policy = policy or Policy()
    return explained(drawn, plan(drawn, policy), policy, name)[0].text


def why_settled(drawn: Host, policy: Policy | None = None) -> str:
    """Say why an unbalanced host is left as it is, of which nothing is moved."""
    policy = policy or Policy()
    found = plan(drawn, policy)
    assert not found.balanced
    assert not found.moves
    return settled(drawn, found, policy)


def test_why_a_vcpu_is_moved_or_is_not() -> None:
    """The nearest reason, in one sentence."""
    crowded = host([30, 30, 30], [], [5])
    texts = [why(crowded, f"g{index}") for index in range(4)]
    moved = [text for text in texts if " is moved from pCPU 0 to pCPU " in text]
    assert moved
    assert all(": pCPU 0 was at " in text for text in moved)
    stays = "vCPU 0 (30%) stays on pCPU 0, though it may use pCPUs 0-2: the plan balances the"
    assert any(text.startswith(stays) or "min_gain" in text for text in texts)
    assert why(host([30], [30]), "g0").endswith(": the host is balanced")
    assert why(host([90], []), "g0").endswith(
        ": it is alone on the busiest pCPU, and elsewhere it would be as busy"
    )
    held = change(crowded, "g0", fixed=True, why="a realtime vCPU")
    assert why(held, "g0").endswith(" and may not be moved: a realtime vCPU")
    assert why(host([30, 0, 60], []), "g1").endswith("it would change nothing")
    assert why(host([50, 50], [50]), "g2").endswith(
        ": moving it would gain less than min_gain asks for, and the threshold is out of reach or"
        " takes too many pins"
    )
    limited = Policy(max_moves=1)
    texts = [why(host([20, 20, 20, 20], []), f"g{index}", limited) for index in range(4)]
    assert sum(text.endswith(": max_moves ended the plan before it") for text in texts) == 3
    elsewhere = change(crowded, "g3", cpus=CpuSet.of([9]))
    assert why(elsewhere, "g3").endswith("may use pCPUs 0-2: that pCPU is not managed")
    narrow = host([30, 30], [], allowed="0")
    assert why(narrow, "g0") == "vCPU 0 (30%) stays on pCPU 0: it may use no other pCPU"


def test_what_was_not_fair_is_named() -> None:
    """Of a vCPU that would have moved and of one that would lose, where nothing nearer holds it."""
    drawn = change(host([100, 100, 100], [100]), "g3", shares=10_240)
    refusal = ": a plan was refused, since it would cut vCPU 0 of g0 from ~33.3"
    for name in ("g0", "g1", "g2", "g3"):
        text = why(drawn, name, Policy(fair_shares=True))
        assert refusal in text
        assert text.endswith(" of a pCPU, less than is fair")
        assert "was refused" not in why(drawn, name)
    assert ": " + why_settled(drawn, Policy(fair_shares=True)) in text


def test_why_a_floater_is_the_kernels() -> None:
    """It does not wait, the setting says so, or to pin it would saturate a pCPU."""
    drawn = change(host([95, 95, 95], []), "g0", cpus=CpuSet.parse("0-1"))
    left = " stays on pCPUs 0-1: it may use several pCPUs and "
    assert why(drawn, "g0", Policy(floating=Floating.AUTO)).endswith(
        left + 'does not wait; floating = "auto" leaves it to the kernel'
    )
    assert why(drawn, "g0", Policy(floating=Floating.KERNEL)).endswith(
        left + 'floating = "kernel" leaves it to the kernel'
    )
    hard = (
        ": it may use several pCPUs, and to pin it would not end balanced without a saturated one"
    )
    assert why(drawn, "g0").endswith(hard)
    waits = change(drawn, "g0", wait_ppm=300_000)
    assert why(waits, "g0", Policy(floating=Floating.AUTO)).endswith(hard)


def test_a_vcpu_of_a_set_does_not_float() -> None:
    """It stays since the sets are balanced, since none waits there, or may use no other set."""
    policy = Policy(pin_to=Granularity.CACHE, floating=Floating.AUTO)
    roomy = change(of_caches(host([90], [90], [5], []), 2), "g0", cpus=CpuSet.parse("0-1"))
    for name in ("g0", "g1"):
        assert why(roomy, name, policy).endswith(
            ": its set has a pCPU for each vCPU that runs there"
        )
    wide = of_caches(host([90], [90], [], [5], [], []), 2)
    narrow = change(wide, "g0", cpus=CpuSet.parse("0-2"), allowed=CpuSet.parse("0-3"))
    assert why(narrow, "g0", policy).endswith(": it may not use half of another set")
    crowded = host([50, 50], [], [45], [45])
    text = why(of_caches(crowded, 2), "g0", policy)
    assert text == (
        "vCPU 0 (50%) is moved from pCPU 0 to pCPUs 0-1: pCPU 0 was crowded while pCPUs 0-1 had"
        " room; now the kernel may run it on all of these"
    )
    balanced = change(of_caches(host([50], [50], [45], [45]), 2), "g0", cpus=CpuSet.parse("0-1"))
    assert why(balanced, "g0", policy).endswith(": the host is balanced")


def test_why_an_unbalanced_host_rests() -> None:
    """The nearest reason, given for the busiest."""
    assert why_settled(host([90], [])) == "vCPU 0 of g0 is alone on pCPU 0, the busiest"
    assert why_settled(host([50, 50], [50])) == (
        "no pin is worth it: each would gain less than min_gain asks for"
    )
    assert why_settled(host([70, 50], [50, 30]), Policy(max_moves=1)) == (
        "what would help takes more pins than max_moves allows"
    )
    fixed = "no vCPU that is pinned to pCPU 0, the busiest, may be moved elsewhere"
    assert why_settled(host([50, 50], [], allowed="0")) == fixed
    held = change(change(host([50, 50], []), "g0", fixed=True), "g1", fixed=True)
    assert why_settled(held) == fixed
    roomy = of_caches(host([90], [90], [5], []), 2)
    assert why_settled(roomy, Policy(pin_to=Granularity.CACHE)) == (
        "pCPUs 0-1, the busiest, have a pCPU for each vCPU that runs there"
    )


def test_where_else_it_may_go_counts() -> None:
    """No other core is left to one that is kept apart, nor a pCPU whose load is not known yet."""
    drawn = change(of_one_guest(host([50, 50], [10], []), "g0", "g2"), "g1", fixed=True)
    drawn = change(drawn, "g0", allowed=CpuSet.parse("0-1"))
    kept_apart = change(drawn, "g0", spread=True)
    assert why(kept_apart, "g0").endswith(
        ": wherever else it may go there is one of its guest on the core, or a vCPU whose load is"
        " not known yet"
    )
    unsettled = dataclasses.replace(drawn, unsettled=CpuSet.of([1]))
    assert why(unsettled, "g0").endswith(
        "pCPUs 0-1: wherever else it may go there is a vCPU whose load is not known yet"
    )
    for one in (kept_apart, unsettled):
        assert why_settled(one) == (
            "no vCPU that is pinned to pCPU 0, the busiest, may be moved elsewhere"
        )


def test_one_beside_the_hosts_own_load_is_not_alone() -> None:
    """It might leave for a pCPU that is less busy, if only that gained enough for another node."""
    drawn = host([40], [])
    cpus = (HostCpu(Cpu(0, node=0), 500_000), HostCpu(Cpu(1, node=1), 400_000))
    drawn = dataclasses.replace(drawn, cpus=cpus)
    assert "would gain less than min_gain asks for" in why(drawn, "g0")
    assert "would gain less than min_gain asks for" in why_settled(drawn)


def test_why_a_vcpu_stays_on_a_weak_pcpu() -> None:
    """A strong pCPU idles beside one that does 60 %: 50 are 83% of that, and enough; 80 go."""
    for load, end in ((50, ": it is alone on its pCPU, which is enough for it"), (80, "80%")):
        drawn = host([], [load])
        cpus = (HostCpu(Cpu(0)), HostCpu(Cpu(1, capacity_ppm=600_000)))
        assert why(dataclasses.replace(drawn, cpus=cpus), "g0").endswith(end)


def test_nobody_of_that_name() -> None:
    """No vCPU, no explanation; a UUID is as good as a name."""
    drawn = host([30], [30])
    found = plan(drawn, Policy())
    assert explained(drawn, found, Policy(), "other") == []
    assert [one.vcpu for one in explained(drawn, found, Policy(), "0001")] == [0]
