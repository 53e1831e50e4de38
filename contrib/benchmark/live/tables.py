"""The tables of the scenarios.

Rule: every figure comes from a `Verdict`; notes say what a column means.
"""

from collections.abc import Mapping

from intervals import CONFIDENCE, Interval
from live.blocks import Timing
from live.scenarios import Scenario
from live.verdict import Measure, Verdict
from tables import Table


def live_tables(
    chosen: Mapping[str, Scenario], verdicts: Mapping[str, Verdict], timing: Timing
) -> list[Table]:
    """Return one table for each scenario that was judged, and one for all."""
    details = [guests_table(chosen[name], verdict) for name, verdict in verdicts.items()]
    return [*details, _summary(chosen, verdicts, timing)]


def guests_table(scenario: Scenario, verdict: Verdict) -> Table:
    """Return what each guest got."""
    lines = [
        (
            guest.shape.name,
            " + ".join(f"{share * 100:.0f}" for share in guest.shape.shares),
            str(guest.shape.start),
            f"{guest.run_without * 100:.1f}",
            f"{guest.run_with * 100:.1f}",
            f"{guest.wait_without * 100:.1f}",
            f"{guest.wait_with * 100:.1f}",
            f"{guest.time.value:.3f}",
            f"{guest.work.value:.3f}",
            *_limits(guest.judged),
        )
        for guest in verdict.guests
    ]
    blank = ("",) * 6
    for name, interval in (("worst off", verdict.worst_off), ("all", verdict.total)):
        ratio = f"{interval.value:.3f}"
        ratios = ("", ratio) if verdict.measure is Measure.WORK else (ratio, "")
        lines.append((name, *blank, *ratios, *_limits(interval)))
    claimed = f"Claimed, by {verdict.measure}: {scenario.claim}."
    notes = [f"{claimed} Verdict: {verdict.answer}{_why(verdict)}."]
    return Table(
        f"{scenario.title}, on {len(scenario.cpus)} pCPUs",
        (
            "guest",
            "wants %",
            "starts on",
            "run %",
            "run % with",
            "wait %",
            "wait % with",
            "time",
            "work",
            "from",
            "to",
        ),
        tuple(lines),
        tuple(notes),
    )


def _summary(
    chosen: Mapping[str, Scenario], verdicts: Mapping[str, Verdict], timing: Timing
) -> Table:
    lines = [
        (
            chosen[name].title,
            _range(verdict.worst_off),
            _range(min((guest.judged for guest in verdict.guests), key=lambda one: one.value)),
            _range(verdict.total),
            f"{verdict.wait_without * 100:.1f} %",
            f"{verdict.wait_with * 100:.1f} %",
            f"{verdict.beside_without:.2f} / {verdict.beside_with:.2f}",
            " ".join(map(str, verdict.pins)),
            str(verdict.answer),
        )
        for name, verdict in verdicts.items()
    ]
    return Table(
        "Real guests, without and with vcpusched",
        (
            "scenario",
            "worst off",
            "lowest ratio",
            "all",
            "wait",
            "wait with",
            "beside",
            "pins",
            "claim",
        ),
        tuple(lines),
        (
            (
                f"{timing.pairs} pairs of blocks of {timing.measure_s:g} s, without and with the"
                f" daemon in turn, after {timing.rest_s:g} s each to come to rest. Work: what the"
                " guests counted themselves; time: what the kernel let them run. Each as the ratio"
                " of with to without, the one they are judged by with the limits of its"
                f" {CONFIDENCE:.0%} confidence interval (Student's t, logarithms of the pairs)."
            ),
            (
                "Worst off: the guest that, in each block, got least of what it wants. Lowest"
                " ratio: the guest with the least gain. Run and wait: the kernel's account of the"
                " vCPU threads, in percent of a pCPU, for all vCPUs of a guest together; in this"
                " table the mean wait of a vCPU. Work falls behind time where pCPUs are slower, as"
                " SMT siblings are that are both busy, and emulated ones that share real ones:"
                " there guests are judged by time."
                " Beside: what else took the pCPUs without / with the daemon, which is in it, in"
                " pCPUs; all of it is noise to the guests. Pins: in each block with the daemon."
            ),
        ),
    )


def _limits(interval: Interval) -> tuple[str, str]:
    return f"{interval.low:.3f}", f"{interval.high:.3f}"


def _range(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def _why(verdict: Verdict) -> str:
    return f": {'; '.join(verdict.reasons)}" if verdict.reasons else ""
