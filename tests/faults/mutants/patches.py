"""Deliberate faults of the product, each a context manager: inside it the imported code has the fault.

This is the one place where tests replace our own code. A place that is no longer there is an AttributeError, so that a
mutant cannot quietly stop being one.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PRODUCT = ("infomae_stream", "storage", "collectors")


@contextmanager
def _replaced(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Set (owner, name, value) each; put back what was there."""
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _everywhere(name: str, original: Any, value: Any) -> list[tuple[Any, str, Any]]:
    """Every module of the product that has `original` under `name`."""
    modules = [m for key, m in sys.modules.items() if key.split(".")[0] in PRODUCT]
    return [(m, name, value) for m in modules if m.__dict__.get(name) is original]


@contextmanager
def no_folder_sync_of_segments() -> Iterator[None]:
    """The rename of a segment is not made durable."""
    import storage.lake  # noqa: F401
    from infomae_stream.folders import sync_path

    def skipping(path: Path) -> None:
        if not path.is_dir() or path.name == "_delta_log" or not any(path.glob("*.parquet")):
            sync_path(path)

    with _replaced(*_everywhere("sync_path", sync_path, skipping)):
        yield


@contextmanager
def no_folder_sync_of_commits() -> Iterator[None]:
    """The link of a commit is not made durable."""
    import storage.lake  # noqa: F401
    from infomae_stream.folders import sync_path

    def skipping(path: Path) -> None:
        if path.name != "_delta_log":
            sync_path(path)

    with _replaced(*_everywhere("sync_path", sync_path, skipping)):
        yield


@contextmanager
def no_folder_sync_of_a_new_outbox() -> Iterator[None]:
    """The folders of a new outbox are made and not made durable."""
    import infomae_stream.outbox as module

    def plain(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    with _replaced((module, "make_folders", plain)):
        yield


@contextmanager
def no_sync_of_segments() -> Iterator[None]:
    """A segment's bytes are not made durable before its commit names it."""
    import storage.durable
    import storage.segments

    class WithoutSync:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, fd: int) -> None:
            if ".parquet." not in os.readlink(f"/proc/self/fd/{fd}"):
                os.fsync(fd)

    holders = [m for m in (storage.durable, storage.segments) if "os" in m.__dict__]
    with _replaced(*((module, "os", WithoutSync()) for module in holders)):
        yield


@contextmanager
def torn_checkpoints_stay() -> Iterator[None]:
    """A checkpoint that a power cut tore is not removed."""
    from storage.delta_log import DeltaLog

    with _replaced((DeltaLog, "drop_torn_checkpoint", lambda self: None)):
        yield


@contextmanager
def conflict_swallowed() -> Iterator[None]:
    """Another writer has the version, and the commit counts as done."""
    import storage.delta_log as module

    original = module.create_exclusively

    def always(path: Path, content: bytes) -> bool:
        original(path, content)
        return True

    with _replaced((module, "create_exclusively", always)):
        yield


@contextmanager
def seq_reused() -> Iterator[None]:
    """The counter is taken from the rows that are there, so it steps back when they are purged."""
    from infomae_stream import outbox_schema

    with _replaced((outbox_schema, "LAST_SEQ", "SELECT coalesce(max(seq), 0) FROM records")):
        yield


@contextmanager
def purged_by_age() -> Iterator[None]:
    """Old rows are deleted, acknowledged or not."""
    from infomae_stream import outbox_schema

    with _replaced((outbox_schema, "PURGE", "DELETE FROM records WHERE accepted_ns <= ?")):
        yield


@contextmanager
def shed_in_silence() -> Iterator[None]:
    """What is shed leaves no gap record."""
    from infomae_stream.shedding import Shedder

    with _replaced((Shedder, "_write_gaps", lambda self, db, batch, put_gap: None)):
        yield


def _after_opening(statement: str) -> Any:
    from infomae_stream.outbox import Outbox

    original = Outbox.__dict__["open"].__func__

    def opened(cls: Any, *args: Any, **kwargs: Any) -> Any:
        outbox = original(cls, *args, **kwargs)
        outbox._db.execute(statement)
        return outbox

    return _replaced((Outbox, "open", classmethod(opened)))


@contextmanager
def commits_not_synced() -> Iterator[None]:
    """SQLite leaves the sync of a commit to the next checkpoint."""
    with _after_opening("PRAGMA synchronous = NORMAL"):
        yield


@contextmanager
def acks_forgotten_at_start() -> Iterator[None]:
    """A restart makes everything wait again that is still in the file."""
    with _after_opening("UPDATE records SET acked = 0"):
        yield


@contextmanager
def nothing_sent_again() -> Iterator[None]:
    """What was published once is never published again."""
    from collectors.uplink import Uplink

    with _replaced((Uplink, "_overdue", lambda self, *_: [])):
        yield


@contextmanager
def stored_record_refused() -> Iterator[None]:
    """A broken copy of a record makes the hub refuse the record itself, stored or not."""
    from collectors.hub.ingest import Ingest

    def refuse(self: Any, taken: Any, verdicts: Any, settled: Any, index: Any) -> None:
        verdicts.refused.append((taken, taken.reason, taken.text))

    with _replaced((Ingest, "_refuse_poison", refuse)):
        yield


@contextmanager
def dead_letter_not_durable() -> Iterator[None]:
    """The name of a dead letter is not durable when the message is refused for good."""
    import collectors.hub.dead_letters as module

    with _replaced((module, "sync_path", lambda path: None)):
        yield


@contextmanager
def deleted_on_puback() -> Iterator[None]:
    """A record leaves the outbox when the broker has taken it."""
    from collectors.node import Node
    from infomae_stream.session import MqttSession
    from infomae_stream.wire import Ack, decode_chunk

    taken: deque[bytes] = deque()
    take_events, listen = MqttSession.__dict__["_take_events"], Node.__dict__["_listen"]

    def noting(self: Any) -> None:
        for kind, mid, _ in self._events:
            message = self._unacknowledged.get(mid)
            if kind == "puback" and message is not None and message.topic.endswith("/chunk"):
                taken.append(message.payload)
        take_events(self)

    def deleting(self: Any) -> None:
        while taken:
            chunk = decode_chunk(taken.popleft())
            self._outbox.acknowledge(Ack(chunk.epoch, ((chunk.seq, chunk.seq),)))
        listen(self)

    with _replaced((MqttSession, "_take_events", noting), (Node, "_listen", deleting)):
        yield


@contextmanager
def acknowledged_before_the_commit() -> Iterator[None]:
    """A batch is acknowledged at once and committed before the next one, or when the program ends."""
    from storage.lake import Committed, Lake

    commit_batch, known = Lake.__dict__["commit_batch"], Lake.__dict__["known_identities"]
    late: list[Callable[[], Any]] = []

    def flush() -> None:
        while late:
            late.pop()()

    def promise(self: Any, chunks: Any, gaps: Any, detections: Any, received_ns: int) -> Committed:
        flush()
        late.append(lambda: commit_batch(self, chunks, gaps, detections, received_ns))
        return Committed(len(chunks) + len(gaps) + len(detections), 0, {})

    def flushing(self: Any) -> Any:
        flush()
        return known(self)

    atexit.register(flush)
    with _replaced((Lake, "commit_batch", promise), (Lake, "known_identities", flushing)):
        yield
