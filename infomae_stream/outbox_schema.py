"""The tables of an outbox file.

records: one row a chunk, gap or detection; `seq` is never used twice, also after rows were deleted (AUTOINCREMENT).
    acked: 0 waits for its ack, 1 durable at the hub, 2 refused by the hub for good.
totals: sums that triggers keep, so that nobody has to scan the records for them.
state: small named values; a source's position is written in the same transaction as its data.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 2

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    stream TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    n_samples INTEGER NOT NULL,
    crc32 INTEGER NOT NULL,
    accepted_ns INTEGER NOT NULL,
    acked INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS records_waiting ON records (seq, kind, stream, bytes) WHERE acked = 0;
CREATE INDEX IF NOT EXISTS records_done ON records (accepted_ns) WHERE acked > 0;
CREATE TABLE IF NOT EXISTS streams (stream TEXT PRIMARY KEY, spec TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS totals (stored_bytes INTEGER NOT NULL, pending_bytes INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS records_added AFTER INSERT ON records BEGIN
    UPDATE totals SET stored_bytes = stored_bytes + new.bytes, pending_bytes = pending_bytes + new.bytes;
END;
CREATE TRIGGER IF NOT EXISTS records_acked AFTER UPDATE OF acked ON records WHEN old.acked = 0 AND new.acked > 0 BEGIN
    UPDATE totals SET pending_bytes = pending_bytes - new.bytes;
END;
CREATE TRIGGER IF NOT EXISTS records_deleted AFTER DELETE ON records BEGIN
    UPDATE totals SET stored_bytes = stored_bytes - old.bytes,
        pending_bytes = pending_bytes - CASE old.acked WHEN 0 THEN old.bytes ELSE 0 END;
END;
"""

# Version 1 had a narrower index, from which the chunks of one stream could not be found.
UPGRADE: Final = """
DROP INDEX IF EXISTS records_pending;
CREATE INDEX IF NOT EXISTS records_waiting ON records (seq, kind, stream, bytes) WHERE acked = 0;
"""

INSERT_RECORD: Final = """
INSERT INTO records (seq, kind, topic, stream, start_ns, n_samples, crc32, accepted_ns, bytes, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
LAST_SEQ: Final = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'records'), 0)"
PENDING: Final = (
    "SELECT seq, topic, payload, bytes FROM records INDEXED BY records_waiting WHERE acked = 0 AND seq > ? ORDER BY seq"
)
RECORD: Final = "SELECT seq, topic, payload, bytes FROM records WHERE acked = 0 AND seq = ?"
# As wire.content_sum, and the number of rows that are still there.
CONTENT_SUM: Final = """
SELECT count(*), coalesce(sum((start_ns + crc32) % 4294967296), 0) FROM records WHERE seq BETWEEN ? AND ?
"""
ACKNOWLEDGE: Final = "UPDATE records SET acked = ? WHERE acked = 0 AND seq BETWEEN ? AND ?"
PURGE: Final = "DELETE FROM records WHERE acked > 0 AND accepted_ns <= ?"
TAIL_CHUNKS: Final = "SELECT payload FROM records WHERE kind = 'chunk' AND seq > ? ORDER BY seq LIMIT ?"
OLDEST: Final = "SELECT accepted_ns FROM records INDEXED BY records_waiting WHERE acked = 0 ORDER BY seq LIMIT 1"
ACCEPTED_AFTER: Final = """
SELECT kind, topic, stream, seq, start_ns, n_samples, crc32 FROM records WHERE seq > ? ORDER BY seq LIMIT ?
"""
OLDEST_DONE: Final = "SELECT seq, bytes FROM records WHERE acked > 0 ORDER BY accepted_ns LIMIT ?"
WAITING_CHUNKS: Final = """
SELECT seq FROM records INDEXED BY records_waiting WHERE acked = 0 AND kind = 'chunk' AND stream = ? AND seq > ?
ORDER BY seq LIMIT ?
"""
WAITING_DETECTIONS: Final = """
SELECT seq, payload, bytes FROM records INDEXED BY records_waiting WHERE acked = 0 AND kind = 'detection'
ORDER BY seq LIMIT ?
"""
WAITING_GAPS: Final = "SELECT seq, payload FROM records INDEXED BY records_waiting WHERE acked = 0 AND kind = 'gap'"
ROW: Final = "SELECT start_ns, n_samples, accepted_ns, bytes, payload FROM records WHERE seq = ?"
UPSERT_STREAM: Final = """
INSERT INTO streams (stream, spec) VALUES (?, ?) ON CONFLICT (stream) DO UPDATE SET spec = excluded.spec
    WHERE spec <> excluded.spec
"""
UPSERT_STATE: Final = """
INSERT INTO state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""
