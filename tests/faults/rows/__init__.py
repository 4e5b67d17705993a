"""The rows of the fault matrix that concern nodes, broker, ingest and lake; found by number, imported when needed."""

from __future__ import annotations

from typing import Final

ROWS: Final[dict[int, str]] = {
    1: "tests.faults.rows.killed:ROW",
    2: "tests.faults.rows.stopped:ROW",
    3: "tests.faults.rows.broker_restarts:ROW",
    4: "tests.faults.rows.slow_network:ROW",
    5: "tests.faults.rows.partition:ROW",
    6: "tests.faults.rows.reordered:ROW",
    7: "tests.faults.rows.full_disk:ROW",
    8: "tests.faults.rows.io_errors:ROW",
    9: "tests.faults.rows.power_cut:ROW",
    10: "tests.faults.rows.clock_faults:ROW",
    11: "tests.faults.rows.poison:ROW",
    12: "tests.faults.rows.torn_files:ROW",
    13: "tests.faults.rows.two_ingests:ROW",
    14: "tests.faults.rows.compaction:ROW",
    15: "tests.faults.rows.slow_disk:ROW",
    19: "tests.faults.rows.cloned_outbox:ROW",
    20: "tests.faults.rows.certificates:ROW",
}
