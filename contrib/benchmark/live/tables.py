"""The tables of the scenarios.

Rule: every figure comes from a `Verdict`; notes say what a column means.
"""

from collections.abc import Mapping

from live.blocks import Timing
from live.scenarios import Scenario
from live.verdict import Measure, Verdict
from tables import Table

from vcpusched.report.confidence import CONFIDENCE, Estimate


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
            *(f"{value * 100:.1f}" for value in (*guest.run, *guest.wait)),
            f"{guest.time.value:.3f}",
            f"{guest.work.value:.3f}",
            *_limits(guest.judged),
        )
        for guest in verdict.guests
    ]
    blank = ("",) * 6
    for name, interval in (("worst off", verdict.worst_off), ("all", verdict.total)):
        value = f"{interval.value:.3f}"
        values = ("", value) if verdict.measure is Measure.WORK else (value, "")
        lines.append((name, *blank, *values, *_limits(interval)))
    why = f": {'; '.join(verdict.reasons)}" if verdict.reasons else ""
    claimed = f"Claimed, by {verdict.measure}: {scenario.claim}. Verdict: {verdict.answer}{why}."
    columns = ("guest", "wants %", "starts on", "run %", "run % with", "wait %", "wait % with")
    return Table(
        f"{scenario.title}, on {len(scenario.cpus)} pCPUs",
        (*columns, "time", "work", "from", "to"),
        tuple(lines),
        (claimed,),
    )


def _summary(
    chosen: Mapping[str, Scenario], verdicts: Mapping[str, Verdict], timing: Timing
) -> Table:
    lines = [
        (
            chosen[name].title,
            str(verdict.worst_off),
            str(min((guest.judged for guest in verdict.guests), key=lambda one: one.value)),
            str(verdict.total),
            *(f"{wait * 100:.1f}%" for wait in verdict.wait),
            " / ".join(f"{beside:.2f}" for beside in verdict.beside),
            " ".join(map(str, verdict.pins)),
            str(verdict.answer),
        )
        for name, verdict in verdicts.items()
    ]
    columns = ("scenario", "worst off", "lowest ratio", "all", "wait", "wait with")
    return Table(
        "Real guests, without and with vcpusched",
        (*columns, "beside", "pins", "claim"),
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


def _limits(interval: Estimate) -> tuple[str, str]:
    return f"{interval.low:.3f}", f"{interval.high:.3f}"
