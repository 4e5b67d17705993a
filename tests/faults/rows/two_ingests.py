"""Row 13: two ingests share one MQTT 5 subscription and write the same tables; one or both are killed meanwhile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult


def trial(rng: random.Random, folder: Path) -> TrialResult:
    with Stage(rng, folder, Size(nodes=2, seconds=300, speed=80)) as stage:
        # A quarter without the sharing: both get everything, and still nothing may be there twice.
        shared = "" if rng.random() < 0.25 else "shared_subscription = 'ingests'"
        stage.configure(Settings(ingest=shared, ingests=2, uplink="resend_after_s = 0.3"))
        stage.start()
        for _ in range(rng.choice([0, 1, 1, 2])):
            stage.go_on(rng.uniform(0, 1.0))
            victim = rng.choice(stage.ingests)
            victim.kill()
            stage.go_on(rng.uniform(0, 0.3))
            stage.start_again(victim)
        stage.fault_is_over()
        return stage.settle()


ROW: Final = Row(13, "two ingests on one shared subscription", trial, 7.0)
