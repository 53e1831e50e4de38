"""What `vcpusched trial` says on guests of which it is known whether the service helps them.

Rule: begins guests and service, and passes on what the verb prints.
"""

import os
from typing import Final

from lab import Lab
from live.blocks import Timing, furnish, restore
from live.scenarios import SETTINGS, scenarios
from live.service import running

from vcpusched.model import CpuSet

SCENARIOS: Final = ("bad", "floating")
"""A gain, and no difference."""

BLOCK_S: Final = 24
"""More than 20 periods of a second, of which two half-lives, six seconds, are left out."""


def run(timing: Timing) -> str:
    """Return what a trial of so many pairs prints on each. Raises LabError."""
    online = CpuSet.of(os.sched_getaffinity(0))
    said = []
    for name in SCENARIOS:
        scenario = scenarios(online)[name]
        with Lab() as lab:
            furnish(lab, scenario, online)
            restore(lab, scenario)
            # What a block without restores may be moved in the block after it.
            settings = {**SETTINGS, **scenario.settings, "cooldown": "3.0"}
            with running(lab.uri, settings) as service:
                service.wait_past(2)
                config = str(service.run_directory.parent / "vcpusched.toml")
                length = ("--for", f"{timing.pairs * 2 * BLOCK_S}s", "--block", f"{BLOCK_S}s")
                printed = service.said("trial", *length, "--config", config)
        said.append(f"### {scenario.title}\n\n```\n{printed}```\n")
    return "\n".join(said)
