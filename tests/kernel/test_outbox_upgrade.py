"""Another version of the program on an outbox: a newer one takes the rows over, an older one leaves them alone."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infomae_stream.clock import ManualClock
from infomae_stream.errors import OutboxError
from infomae_stream.outbox import Outbox
from infomae_stream.outbox_schema import VERSION
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import Ack, encode_chunk
from tests.waiting import PATIENCE_S

SPEC = StreamSpec(StreamId("s01", "s01-phone", "imu"), "imu", 100.0, ("x",), ("m/s2",), (400.0,))
QUALITY = ClockQuality("test", 0, 1000, True)
SECOND = 1_000_000_000
# The tables as the first released program made them: what a node in the field may still have on its card.
FIRST_FORMAT = """
CREATE TABLE records (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, topic TEXT NOT NULL,
    stream TEXT NOT NULL, start_ns INTEGER NOT NULL, n_samples INTEGER NOT NULL, crc32 INTEGER NOT NULL,
    accepted_ns INTEGER NOT NULL, acked INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE INDEX records_pending ON records (seq, bytes) WHERE acked = 0;
CREATE INDEX records_done ON records (accepted_ns) WHERE acked > 0;
CREATE TABLE streams (stream TEXT PRIMARY KEY, spec TEXT NOT NULL);
CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE totals (stored_bytes INTEGER NOT NULL, pending_bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER records_added AFTER INSERT ON records BEGIN
    UPDATE totals SET stored_bytes = stored_bytes + new.bytes, pending_bytes = pending_bytes + new.bytes;
END;
CREATE TRIGGER records_acked AFTER UPDATE OF acked ON records WHEN old.acked = 0 AND new.acked > 0 BEGIN
    UPDATE totals SET pending_bytes = pending_bytes - new.bytes;
END;
CREATE TRIGGER records_deleted AFTER DELETE ON records BEGIN
    UPDATE totals SET stored_bytes = stored_bytes - old.bytes,
        pending_bytes = pending_bytes - CASE old.acked WHEN 0 THEN old.bytes ELSE 0 END;
END;
PRAGMA user_version = 1;
"""


def write_first_format(path: Path, n: int) -> list[bytes]:
    """Records 1 to n, of which the first is acknowledged; their payloads."""
    db = sqlite3.connect(path)
    db.executescript("PRAGMA journal_mode = WAL;" + FIRST_FORMAT)
    payloads = []
    for seq in range(1, n + 1):
        samples_CN = np.full((1, 100), seq, dtype=np.int16)
        payload = encode_chunk(Chunk(SPEC, "e1", seq, seq * SECOND, samples_CN, QUALITY, None, seq * SECOND))
        row = (seq, "chunk", "infomae/v1/s01/s01-phone/imu/chunk", "imu", seq * SECOND, 100, 0, seq * SECOND)
        db.execute("INSERT INTO records VALUES (?,?,?,?,?,?,?,?,0,?,?)", (*row, len(payload), payload))
        payloads.append(payload)
    db.execute("UPDATE records SET acked = 1 WHERE seq = 1")
    db.executemany("INSERT INTO state VALUES (?, ?)", [("epoch", b"e1"), ("position/imu", b'{"offset": 7}')])
    db.commit()
    db.close()
    return payloads


def open_outbox(path: Path) -> Outbox:
    return Outbox.open(path, ManualClock(), max_bytes=10_000_000, reserve_bytes=0)


def version(path: Path) -> int:
    db = sqlite3.connect(path)
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    db.close()
    return found


def test_an_upgrade_keeps_rows_epoch_numbers_and_positions(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    payloads = write_first_format(path, 5)
    outbox = open_outbox(path)
    assert [record.payload for record in outbox.pending(10**6)] == payloads[1:]
    assert outbox.epoch == "e1"
    assert outbox.get_state("position/imu") == b'{"offset": 7}'
    assert outbox.unacked_bytes() == sum(map(len, payloads[1:]))
    # Both processes of a node open the file, in any order; the second finds it done.
    detector = open_outbox(path)
    assert [chunk.seq for chunk in detector.tail_chunks(0, 10)] == [1, 2, 3, 4, 5]
    detector.close()
    outbox.put_chunk(SPEC, 6 * SECOND, np.full((1, 100), 6, dtype=np.int16), QUALITY)
    (accepted,) = outbox.commit()
    assert accepted.seq == 6
    outbox.acknowledge(Ack("e1", ((2, 5),)))
    assert [record.seq for record in outbox.pending(10**6)] == [6]
    outbox.close()
    assert version(path) == VERSION > 1


def test_an_upgrade_that_is_cut_short_is_done_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    payloads = write_first_format(path, 3)
    db = sqlite3.connect(path)
    db.execute("BEGIN IMMEDIATE")
    db.execute("DROP INDEX records_pending")  # and the power goes
    db.close()
    assert version(path) == 1
    outbox = open_outbox(path)
    assert [record.payload for record in outbox.pending(10**6)] == payloads[1:]
    outbox.close()


def test_an_older_program_refuses_a_newer_file_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state" / "s01" / "s01-phone" / "outbox.sqlite"
    outbox = open_outbox(path)
    outbox.put_chunk(SPEC, SECOND, np.full((1, 100), 1, dtype=np.int16), QUALITY)
    outbox.commit()
    outbox.close()
    db = sqlite3.connect(path)
    db.executescript(f"ALTER TABLE records ADD COLUMN later TEXT; PRAGMA user_version = {VERSION + 1};")
    db.close()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(OutboxError, match=rf"format {VERSION + 1}, this program reads up to {VERSION}") as refused:
        open_outbox(path)
    assert "install the newer program again" in refused.value.fix
    # The program itself says the same and ends, before it takes a sample that it could not keep.
    config = tmp_path / "node.toml"
    config.write_text(
        "[metrics]\ncollect_port = 0\n[[nodes]]\nsite = 's01'\nnode = 's01-phone'\n"
        "sources = [{ type = 'synthetic', kinds = ['imu'] }]\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "infomae_stream.cli", "node", "collect", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1 and "install the newer program again" in ended.stderr
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
