"""Running a machine of hypothesis for as long as is asked for: seconds in CI, and minutes by hand.

PYPUBSUB_MODEL_EXAMPLES: how many lives of the machine; PYPUBSUB_MODEL_STEPS: of how many steps at most;
PYPUBSUB_MODEL_SHRINK: to have what is found made smaller, which may take minutes.
"""

import os
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine


def search(
    machine: type[RuleBasedStateMachine],
    examples: int,
    length: int,
    steps: Counter[str],
) -> None:
    """Run it: so many examples of that length, unless others are asked for. steps: counted by the machine."""
    machine.TestCase.settings = settings(
        max_examples=int(os.environ.get("PYPUBSUB_MODEL_EXAMPLES", examples)),
        stateful_step_count=int(os.environ.get("PYPUBSUB_MODEL_STEPS", length)),
        deadline=None,
        phases=list(Phase) if "PYPUBSUB_MODEL_SHRINK" in os.environ else [Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    begun = time.monotonic()
    steps.clear()
    machine.TestCase("runTest").debug()
    print(f"{sum(steps.values())} steps in {time.monotonic() - begun:.0f} s: {dict(steps)}")
