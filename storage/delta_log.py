"""The transaction log of one Delta table, written so that a commit that returned survives a power cut (D2).

Why not `deltalake`'s own writer: observed with strace on deltalake 1.6.6, local file system: it creates
`N.json#1`, links it to `N.json`, unlinks it, and renames data files, and calls neither fsync nor fdatasync, on no
file and no folder. Syncing afterwards is not enough either: a power cut between its link and our fsync can leave an
empty `N.json`, and with it a table that nobody can open. So the commit file is written here, by the open protocol
(https://github.com/delta-io/delta/blob/master/PROTOCOL.md, reader 1, writer 2) and with the same put-if-absent (link)
that deltalake uses, so that both may commit to one table. Reading and checkpoints stay with deltalake.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError

from infomae_stream.errors import LakeError
from infomae_stream.failpoints import reached
from infomae_stream.folders import make_folders, sync_path
from infomae_stream.telemetry import EventLog
from storage.durable import create_exclusively
from storage.schemas import TableLayout
from storage.segments import remove_segments

Action = dict[str, Any]
CHECKPOINT_EVERY: Final = 100
_log = EventLog("infomae.lake")


class DeltaLog:
    """The log below `table/_delta_log`. Not for threads; any number of processes may have one each."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.folder = table / "_delta_log"
        self._version = -1

    def create(self, layout: TableLayout, now_ns: int) -> None:
        """Make the table when it is missing; when two make it at once, one wins and both go on."""
        make_folders(self.folder)
        if self.version() >= 0:
            return
        metadata = {
            "id": str(uuid.uuid4()),
            "format": {"provider": "parquet", "options": {}},
            "schemaString": Schema.from_arrow(layout.schema).to_json(),
            "partitionColumns": list(layout.partition_by),
            "configuration": {
                # Lineage names table versions: only vacuum, which knows them, may cut the log.
                "delta.enableExpiredLogCleanup": "false",
                # Tombstones of merged files serve nobody here, and would fill every checkpoint for a week.
                "delta.deletedFileRetentionDuration": "interval 1 hours",
            },
            "createdTime": now_ns // 1_000_000,
        }
        protocol = {"minReaderVersion": 1, "minWriterVersion": 2}
        self.try_commit(0, [{"protocol": protocol}, {"metaData": metadata}], now_ns)

    def widen(self, layout: TableLayout, now_ns: int) -> None:
        """Give a table of an older version the columns of `layout.added`; the files it has stay as they are.

        When two do it at once, one wins and both go on. Raises OSError.
        """
        while layout.added:
            try:
                table = DeltaTable(self.table)
            except DeltaError:  # a damaged log: whoever reads it says so
                return
            missing = set(layout.added) - {field.name for field in table.schema().fields}
            if not missing:
                return
            old = table.metadata()
            metadata = {
                "id": str(old.id),
                "format": {"provider": "parquet", "options": {}},
                "schemaString": Schema.from_arrow(layout.schema).to_json(),
                "partitionColumns": list(old.partition_columns),
                "configuration": dict(old.configuration),
                "createdTime": old.created_time,
            }
            if self.try_commit(table.version() + 1, [{"metaData": metadata}], now_ns, operation="ADD COLUMNS"):
                _log.info("columns_added", table=str(self.table), columns=sorted(missing))

    def version(self) -> int:
        """The newest version; -1 when the table does not exist."""
        if self._version < 0:
            self._version = max((int(p.stem) for p in self.folder.glob("[0-9]*.json")), default=-1)
        while self.commit_file(self._version + 1).exists():
            self._version += 1
        return self._version

    def try_commit(self, version: int, actions: Sequence[Action], now_ns: int, *, operation: str = "WRITE") -> bool:
        """Write `actions` as `version`; False when another writer has that version. Raises OSError.

        After an OSError the commit may be there or not; `version()` and `actions()` tell.
        """
        info = {
            "timestamp": now_ns // 1_000_000,
            "operation": operation,
            "operationParameters": {"mode": "Append"} if operation == "WRITE" else {},
            "engineInfo": "infomae-stream",
        }
        lines = [{"commitInfo": info}, *actions]
        reached("lake.before_commit")
        done = create_exclusively(self.commit_file(version), "".join(json.dumps(a) + "\n" for a in lines).encode())
        if done:
            reached("lake.after_commit")
        return done

    def commit_or_clear(
        self, version: int, actions: Sequence[Action], now_ns: int, *, operation: str = "WRITE"
    ) -> bool:
        """`try_commit`; when that raises and nothing landed, the segments it adds are removed before the OSError."""
        try:
            return self.try_commit(version, actions, now_ns, operation=operation)
        except OSError:
            if not self.commit_file(version).exists():
                remove_segments(self.table, [action for action in actions if "add" in action])
            raise

    def sync(self) -> None:
        """Make the names of all commits seen so far durable, also those of a writer that died before its fsync."""
        sync_path(self.folder)

    def actions(self, first: int, last: int) -> Iterator[Action]:
        """The actions of versions first..last, in order. Raises LakeError when one of them cannot be read."""
        for version in range(max(first, 0), last + 1):
            try:
                lines = self.commit_file(version).read_bytes().splitlines()
                yield from [json.loads(line) for line in lines]
            except (OSError, ValueError) as e:
                raise LakeError(f"commit {version} cannot be read: {e}", where=str(self.folder)) from e

    def has(self, first: int, last: int) -> bool:
        """Whether the commits first..last are all there: vacuum takes those that no kept version needs."""
        return all(self.commit_file(version).exists() for version in range(first, last + 1))

    def checkpoint_quietly(self, version: int) -> None:
        """Sum up the log every CHECKPOINT_EVERY versions, so that opening the table stays cheap.

        The commits themselves hold everything, so a checkpoint that fails (a full disk) is logged and left out.
        """
        if version == 0 or version % CHECKPOINT_EVERY:
            return
        try:
            DeltaTable(self.table, version=version).create_checkpoint()
            written = self.folder.glob(f"{version:020d}.checkpoint*")
            for path in (*written, self.folder / "_last_checkpoint", self.folder):
                sync_path(path)
        except (OSError, DeltaError) as e:
            _log.warning("checkpoint_failed", table=str(self.table), version=version, error=str(e)[:200])
            self.drop_torn_checkpoint()

    def drop_torn_checkpoint(self) -> None:
        """Remove a newest checkpoint that a power cut tore (deltalake does not sync it); the commits are all there."""
        torn = [p for p in sorted(self.folder.glob("*.checkpoint*.parquet"))[-1:] if not _is_parquet(p)]
        pointer = self.folder / "_last_checkpoint"
        if pointer.exists() and (torn or not _is_json(pointer)):
            pointer.unlink()
        for path in torn:
            path.unlink()
            _log.warning("torn_checkpoint_removed", path=str(path))

    def commit_file(self, version: int) -> Path:
        return self.folder / f"{version:020d}.json"


def _is_parquet(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
        return False
    return True


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True
