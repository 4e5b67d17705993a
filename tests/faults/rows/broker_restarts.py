"""Row 3: the broker ends (kindly or not) and comes back: without a store, with one, with its store deleted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult


def trial(rng: random.Random, folder: Path) -> TrialResult:
    kind = rng.choice(["no store", "store", "store", "store deleted", "amqtt"])
    with Stage(
        rng,
        folder,
        Size(nodes=2, seconds=300, speed=100),
        broker="amqtt" if kind == "amqtt" else "mosquitto",
        # autosave after every change: its store is as new as it can be, and still no promise.
        broker_extra=f"persistence true\npersistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true"
        if kind.startswith("store")
        else "",
    ) as stage:
        stage.configure(Settings())
        stage.start()
        for _ in range(rng.choice([1, 2, 3])):
            stage.go_on(rng.uniform(0, 0.8))
            if rng.random() < 0.6:
                stage.broker.kill()
            else:
                stage.broker.stop()
            if kind == "store deleted":
                (folder / "mosquitto.db").unlink(missing_ok=True)
            stage.go_on(rng.uniform(0, 0.8))
            stage.broker.start()
        stage.fault_is_over()
        return stage.settle()


ROW: Final = Row(3, "broker restarts: no store, store, store deleted", trial, 7.0)
