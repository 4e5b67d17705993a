"""Named places around the steps of delivery (D1-D4) where a fault test may kill, delay or fail the program.

`INFOMAE_FAILPOINTS="segment.before_rename=kill@3, ingest.before_ack=sleep:0.5"`, read once, at import. Without it a
place costs one look into an empty dict.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from typing import Final

from infomae_stream.errors import ConfigError

VARIABLE: Final = "INFOMAE_FAILPOINTS"
FAILPOINTS: Final[dict[str, str]] = {
    "outbox.before_commit": "D1: rows inserted, transaction open",
    "outbox.after_commit": "D1 done: accepted, nobody knows yet",
    "outbox.before_shed": "records given up and their gap records written, transaction open",
    "outbox.after_shed": "records given up, their gap records accepted",
    "uplink.after_publish": "published, no acknowledgement yet",
    "segment.before_sync": "D2: Parquet bytes written, not synced",
    "segment.before_rename": "D2: segment synced under its temporary name",
    "segment.after_rename": "D2: segment in place, its folder not synced",
    "lake.before_commit": "D2: segments durable, no commit names them",
    "lake.before_folder_sync": "D2: the commit's name is there and not durable",
    "lake.after_commit": "D2 done: committed, not acknowledged",
    "compaction.before_rename": "merged rows synced under a temporary name",
    "compaction.before_commit": "merged files durable, no commit names them",
    "compaction.after_commit": "merged files committed, the old ones unnamed",
    "retention.before_commit": "identities written down as retired, their rows still there",
    "vacuum.before_unlink": "files chosen that nobody needs, none deleted",
    "ingest.before_ack": "D3: a batch durable, its acknowledgements not sent",
    "ingest.after_ack": "D3: acknowledgements handed to the connection",
    "outbox.before_acknowledge": "D4: rows marked, transaction open",
    "outbox.after_acknowledge": "D4: rows marked",
    "outbox.before_purge": "D4: acknowledged rows deleted, transaction open",
    "outbox.after_purge": "D4 done: acknowledged rows deleted",
}
_ACTIONS: Final = ("kill", "sleep", "error")


@dataclass(slots=True)
class _Armed:
    action: str
    seconds: float
    left: int  # it acts when this many more passes have come by, that one included


def parse(text: str) -> dict[str, _Armed]:
    """`name=action[:seconds][@n]`, comma-separated; acts at the n-th pass only (`sleep` without n: at every one).

    Actions: kill (SIGKILL to this process), sleep:seconds, error (OSError EIO). Raises ConfigError.
    """
    armed = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, what = part.partition("=")
        action, _, count = what.partition("@")
        action, _, seconds = action.partition(":")
        if name not in FAILPOINTS:
            raise ConfigError(f"no failpoint {name!r}", where=VARIABLE, fix=f"known: {', '.join(FAILPOINTS)}")
        if action not in _ACTIONS or (count and not count.isdecimal()):
            raise ConfigError(f"{part!r} cannot be read", where=VARIABLE, fix="write name=kill@3 or name=sleep:0.5")
        armed[name] = _Armed(action, float(seconds or 0), int(count or (0 if action == "sleep" else 1)))
    return armed


def reached(name: str) -> None:
    """Pass the place `name`. Raises OSError when a test asked for it."""
    armed = _ARMED.get(name)
    if armed is None:
        return
    if armed.left:
        armed.left -= 1
        if armed.left:
            return
        del _ARMED[name]
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif armed.action == "sleep":
        time.sleep(armed.seconds)
    else:
        raise OSError(errno.EIO, f"failpoint {name}")


_ARMED: Final = parse(os.environ.get(VARIABLE, ""))
