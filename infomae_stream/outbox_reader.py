"""What an outbox file holds, and its transactions: all that `Outbox` builds on."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infomae_stream import outbox_schema as sql
from infomae_stream.clock import Clock
from infomae_stream.errors import OutboxError, WireError
from infomae_stream.outbox_file import connect, translated
from infomae_stream.types import Chunk, StreamSpec
from infomae_stream.wire import decode_chunk


@dataclass(frozen=True, slots=True)
class Accepted:
    """One record after D1. crc32 is that of a chunk's samples, 0 for other kinds; stream is "" for detections."""

    kind: str
    topic: str
    stream: str
    epoch: str
    seq: int
    start_ns: int
    n_samples: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Record:
    """What travels."""

    seq: int
    topic: str
    payload: bytes


class OutboxReader:
    """An open outbox file as a reader sees it. Not for sharing between threads."""

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Clock) -> None:
        self._db = connection
        self.path = path
        self._clock = clock
        self.epoch = self._read_or_make_epoch()

    def pending(self, limit_bytes: int, after_seq: int = 0) -> list[Record]:
        """Records without ack, oldest first, at least one if there is any, together at most about `limit_bytes`."""
        records: list[Record] = []
        with self._reading():
            for seq, topic, payload, size in self._db.execute(sql.PENDING, (after_seq,)):
                limit_bytes -= size
                if records and limit_bytes < 0:
                    break
                records.append(Record(seq, topic, payload))
        return records

    def record(self, seq: int) -> Record | None:
        """The record, unless it has been acknowledged."""
        with self._reading():
            row = self._db.execute(sql.RECORD, (seq,)).fetchone()
        return None if row is None else Record(row[0], row[1], row[2])

    def tail_chunks(self, after_seq: int, limit: int) -> list[Chunk]:
        """Chunks with seq above `after_seq`, acknowledged or not, oldest first. Raises OutboxError for a broken row."""
        with self._reading():
            rows = self._db.execute(sql.TAIL_CHUNKS, (after_seq, limit)).fetchall()
        try:
            return [decode_chunk(payload) for (payload,) in rows]
        except WireError as e:
            raise OutboxError(f"a record cannot be read: {e}", where=str(self.path)) from e

    def accepted_after(self, seq: int, limit: int = 1000) -> list[Accepted]:
        """What has been accepted after `seq` and is still here, in order."""
        with self._reading():
            rows = self._db.execute(sql.ACCEPTED_AFTER, (seq, limit)).fetchall()
        return [Accepted(kind, topic, stream, self.epoch, *rest) for kind, topic, stream, *rest in rows]

    def last_seq(self) -> int:
        """The highest sequence number given out so far; 0 for none."""
        with self._reading():
            return int(self._db.execute(sql.LAST_SEQ).fetchone()[0])

    def unacked_bytes(self) -> int:
        with self._reading():
            return int(self._db.execute("SELECT pending_bytes FROM totals").fetchone()[0])

    def oldest_unacked_ns(self) -> int | None:
        """When the oldest record without ack was accepted (this node's wall clock); None when nothing waits."""
        with self._reading():
            row = self._db.execute(sql.OLDEST).fetchone()
        return None if row is None else int(row[0])

    def streams(self) -> list[StreamSpec]:
        """Every stream that ever had a chunk here, as it was described last."""
        with self._reading():
            rows = self._db.execute("SELECT spec FROM streams ORDER BY stream").fetchall()
        return [StreamSpec.from_dict(json.loads(spec)) for (spec,) in rows]

    def get_state(self, key: str) -> bytes | None:
        with self._reading():
            row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_state(self, key: str, value: bytes) -> None:
        """Write a named value at once, on disk when this returns."""
        with self._transaction():
            self._db.execute(sql.UPSERT_STATE, (key, value))

    def close(self) -> None:
        """What was not committed was never accepted, and is lost."""
        self._db.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _read_or_make_epoch(self) -> str:
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version != sql.VERSION:
                raise OutboxError(
                    f"the outbox has format {version}, this program reads up to {sql.VERSION}",
                    where=str(self.path),
                    fix="install the newer program again, which wrote it; nothing in it was changed",
                )
            # OR IGNORE: collector and detector may make the file together.
            self._db.execute("INSERT OR IGNORE INTO state VALUES ('epoch', ?)", (os.urandom(8).hex().encode(),))
            return bytes(self._db.execute("SELECT value FROM state WHERE key = 'epoch'").fetchone()[0]).decode()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            self._renew_after(e)
            raise translated(e, self.path) from e

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block or nothing. Raises OutboxFull or OutboxError for what SQLite and the disk say."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as e:
            self._roll_back()
            if isinstance(e, sqlite3.Error):
                self._renew_after(e)
                raise translated(e, self.path) from e
            raise

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as e:
            self._renew_after(e)

    def _renew_after(self, error: sqlite3.Error) -> None:
        """After an error of the disk go on with new descriptors; while none can be had, the next error tries again.

        A descriptor whose sync failed is not synced again: the kernel may have dropped what it could not write, and
        would say that all is well. What was not committed is written anew through the new one, over the same place.
        """
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_IOERR:
            return
        try:
            renewed = connect(self.path)
        except sqlite3.Error:
            return
        # Only now: the last connection to close a file would sync it once more.
        self._db.close()
        self._db = renewed
