"""What ingest does with messages, without the network: decode, refuse, batch, commit, and tell what to acknowledge.

Nothing is acknowledged that is not on disk: a record in the lake (D2), a refused message in the dead letters. When the
disk refuses, everything stays as it is and the batch may be stored again.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from collectors.hub.dead_letters import DeadLetters
from collectors.hub.received import MessageReader, Record, Taken, claimed_identity, storable
from collectors.hub.recent_contents import RecentContents
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import LakeError
from infomae_stream.stored_chunk import StoredChunk
from infomae_stream.telemetry import EventLog
from infomae_stream.topics import node_topic
from infomae_stream.types import Detection, Gap
from infomae_stream.wire import CONTENT_MODULUS, Ack, content_sum, encode_ack, seq_ranges
from storage.identities import OutboxKey
from storage.lake import Lake
from storage.stored import Content, Found, Identity, content_of, look_up, quarantined

__all__ = ["Batch", "Ingest", "Outcome", "claimed_identity"]

# Two minutes of a thousand nodes. A hub that stalls is sent everything again; had it to look all of that up in the
# lake, it would fall behind for good.
RECENT_RECORDS: Final = 200_000
MOST_RESERVE_BYTES: Final = 500_000_000
_log = EventLog("infomae.ingest")


@dataclass(slots=True)
class Batch:
    """Messages on their way to the disk."""

    messages: list[Taken]
    size: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a commit came to: messages to publish as (topic, payload), counts by outcome and by reason of refusal."""

    acks: list[tuple[str, bytes]]
    counts: Counter[str]
    refused: Counter[str]
    lag_s: float | None  # from the newest chunk's acceptance on its node; None when no chunk was new


@dataclass(slots=True)
class _Verdicts:
    new: list[Taken] = field(default_factory=list)
    durable: list[Taken] = field(default_factory=list)
    refused: list[tuple[Taken, str, str]] = field(default_factory=list)  # message, reason, text
    conflicts: set[Identity] = field(default_factory=set)
    # Known and not to be found: a file is torn. Neither acknowledged nor refused, so that the node keeps them.
    missing: list[Identity] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Ingest:
    """`take` messages while `has_room`; when due, `seal` a batch, `store` it, `release` it; `commit` does all three.

    One batch at a time is sealed. `store` may run on another thread while `take` goes on; nothing else may.
    reserve_bytes: free space that a batch must leave on the lake's disk; None: a hundredth of it, MOST_RESERVE_BYTES at
    most.
    """

    def __init__(
        self,
        lake: Lake,
        dead_letters: DeadLetters,
        clock: Clock,
        *,
        commit_interval_s: float,
        commit_bytes: int,
        max_inflight_bytes: int,
        reserve_bytes: int | None = 0,
    ) -> None:
        self._lake = lake
        self._dead_letters = dead_letters
        self._clock = clock
        self._commit_interval_ns = round(commit_interval_s * NS_PER_S)
        self._commit_bytes = commit_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._reserve_bytes = reserve_bytes
        self._reader = MessageReader()
        self._pending: deque[Taken] = deque()
        self._pending_bytes = 0
        self._oldest_ns = 0
        self._sealed: Batch | None = None
        self._recent = RecentContents(RECENT_RECORDS)  # of `store`

    @property
    def inflight_bytes(self) -> int:
        """Taken and not committed."""
        return self._pending_bytes + (self._sealed.size if self._sealed is not None else 0)

    @property
    def has_room(self) -> bool:
        return self.inflight_bytes < self._max_inflight_bytes

    def seconds_until_due(self) -> float:
        """How long the next commit may wait; the whole interval when there is nothing to commit."""
        if self._pending_bytes >= self._commit_bytes or self._sealed is not None:
            return 0.0
        waited_ns = self._clock.monotonic_ns() - self._oldest_ns if self._pending else 0
        return max(0, self._commit_interval_ns - waited_ns) / NS_PER_S

    def take(self, topic: str, payload: bytes) -> None:
        """Take a message, whatever it holds."""
        if not self._pending:
            self._oldest_ns = self._clock.monotonic_ns()
        taken = self._reader.read(topic, payload, self._clock.now_ns())
        self._pending.append(taken)
        self._pending_bytes += taken.size

    def seal(self, most_bytes: int | None = None) -> Batch:
        """The batch to store next: the oldest messages, some `most_bytes` of them; the same one until its release."""
        if self._sealed is None:
            batch = Batch([], 0)
            while self._pending and (most_bytes is None or batch.size < most_bytes):
                taken = self._pending.popleft()
                batch.messages.append(taken)
                batch.size += taken.size
            self._pending_bytes -= batch.size
            self._oldest_ns = self._clock.monotonic_ns()
            self._sealed = batch
        return self._sealed

    def release(self) -> None:
        """The sealed batch is stored."""
        self._sealed = None

    def commit(self) -> Outcome:
        """Seal all, store and release. Raises LakeError as `store` does; a later call goes on from there."""
        outcome = self.store(self.seal())
        self.release()
        return outcome

    def store(self, batch: Batch) -> Outcome:
        """Make durable what was taken, then tell what to acknowledge.

        Raises LakeError when the disk refuses, or has less than the reserve; the batch may be stored again.
        """
        if batch.messages:
            self._check_reserve(batch.size)
        verdicts = self._judge(batch)
        try:
            written, duplicates = self._write(verdicts)
        except (ValueError, TypeError, OverflowError) as e:
            if not _give_up_unstorable(batch):
                raise LakeError(f"a batch does not fit the tables: {e}", where=str(self._lake.path)) from e
            return self.store(batch)
        self._lake.quarantine(((*key, seq) for key, seq in verdicts.conflicts), "conflict")
        self._bury(verdicts)
        self._remember(verdicts)
        newest_ns = max((taken.record.accepted_ns for taken in verdicts.new if isinstance(taken.record, StoredChunk)),
                        default=0)  # fmt: skip
        verdicts.counts["stored"] += written
        verdicts.counts["duplicate"] += duplicates
        verdicts.counts["refused"] += len(verdicts.refused)
        return Outcome(
            acks=_acks([*verdicts.durable, *verdicts.new], verdicts.refused),
            counts=verdicts.counts,
            refused=Counter(reason for _, reason, _ in verdicts.refused),
            lag_s=(self._clock.now_ns() - newest_ns) / NS_PER_S if newest_ns else None,
        )

    def _check_reserve(self, size: int) -> None:
        try:
            disk = shutil.disk_usage(self._lake.path)
        except OSError as e:
            raise LakeError(f"the disk does not answer: {e.strerror}", where=str(self._lake.path)) from e
        reserve = self._reserve_bytes
        if reserve is None:
            reserve = min(disk.total // 100, MOST_RESERVE_BYTES)
        if disk.free < reserve + size:
            raise LakeError(
                f"{disk.free} bytes are free, and {reserve} stay in reserve",
                where=str(self._lake.path),
                fix="make room, or set [retention] or ingest.reserve_bytes",
            )

    def _write(self, verdicts: _Verdicts) -> tuple[int, int]:
        """Commit what is new. Return how many were written, and with how many another ingest was quicker.

        What it brought under the same identities with other bytes turns into refusals.
        """
        records = [_record(taken) for taken in verdicts.new]
        committed = self._lake.commit_batch(
            [r for r in records if isinstance(r, StoredChunk)],
            [r for r in records if isinstance(r, Gap)],
            [r for r in records if isinstance(r, Detection)],
            self._clock.now_ns(),
        )
        raced = set(committed.conflicts)
        if raced:
            lost = [taken for taken in verdicts.new if taken.identity in raced]
            verdicts.new = [taken for taken in verdicts.new if taken.identity not in raced]
            verdicts.refused += [(taken, "conflict", "same identity, different bytes") for taken in lost]
            verdicts.conflicts |= raced
        return committed.written, committed.duplicates - len(raced)

    def _judge(self, batch: Batch) -> _Verdicts:
        """New, stored already, in conflict, missing, or poison."""
        verdicts = _Verdicts()
        index = self._lake.known_identities()
        good: dict[Identity, list[Taken]] = {}
        for taken in batch.messages:
            if taken.record is not None:
                good.setdefault(_identity(taken), []).append(taken)
        known = {identity for identity in good if (*identity[0], identity[1]) in index}
        forgotten = {identity for identity in known if identity not in self._recent}
        banned = quarantined(self._lake, forgotten)
        contents = {
            identity: {content_of(_record(taken)) for taken in copies}
            for identity, copies in good.items()
            if len(copies) > 1 or identity in known
        }
        held = look_up(self._lake, {identity: contents[identity] for identity in forgotten - banned})
        for identity, copies in good.items():
            fresh = identity not in known
            if fresh and len(copies) == 1:
                verdicts.new.append(copies[0])
            elif identity in banned or self._differs(contents[identity], identity, held):
                verdicts.refused += [(taken, "conflict", "same identity, different bytes") for taken in copies]
                verdicts.conflicts |= {identity} - banned
            elif identity in forgotten and identity not in held.contents and identity not in held.retired:
                verdicts.missing.append(identity)
                verdicts.counts["missing"] += len(copies)
            else:
                if fresh:
                    verdicts.new.append(copies[0])
                else:
                    verdicts.durable.append(copies[0])
                verdicts.counts["duplicate"] += len(copies) - fresh
        poison = [taken for taken in batch.messages if taken.record is None]
        settled = good.keys() - {_identity(taken) for taken, _, _ in verdicts.refused} if poison else set()
        for taken in poison:
            self._refuse_poison(taken, verdicts, settled, index)
        return verdicts

    def _differs(self, contents: set[Content], identity: Identity, held: Found) -> bool:
        """Whether an identity has two contents, counting what is stored under it."""
        recent = self._recent.get(identity)
        if len(contents) == 1 and recent is not None:
            return {hash(content) for content in contents} != {recent}
        return len(contents | held.contents.get(identity, set())) > 1

    def _refuse_poison(self, taken: Taken, verdicts: _Verdicts, settled: Iterable[Identity], index: Any) -> None:
        """A broken copy never takes away the good one: its letter is kept, and the node is not told to give up."""
        identity = taken.identity
        if identity is not None and (identity in settled or (*identity[0], identity[1]) in index):
            taken = replace(taken, identity=None)
        verdicts.refused.append((taken, taken.reason, taken.text))

    def _bury(self, verdicts: _Verdicts) -> None:
        try:
            for taken, reason, text in verdicts.refused:
                if self._dead_letters.keep(taken.topic, taken.payload, reason, text, taken.received_ns):
                    _log.warning("message_refused", reason=reason, topic=taken.topic[:200], text=text)
        except OSError as e:
            raise LakeError(f"a dead letter cannot be written: {e.strerror or e}") from e
        for (site, node, epoch), seq in sorted(verdicts.conflicts):
            _log.error("identity_conflict", site=site, node=node, epoch=epoch, seq=seq, fix="was an outbox copied?")

        if verdicts.missing:
            fix = "`lake verify` names torn files: restore them, or start ingest anew to store these records again"
            _log.error("known_and_not_found", records=len(verdicts.missing), first=verdicts.missing[0], fix=fix)

    def _remember(self, verdicts: _Verdicts) -> None:
        looked_up = [taken for taken in verdicts.durable if _identity(taken) not in self._recent]
        lately = [*verdicts.new, *looked_up]
        self._recent.remember([(_identity(taken), hash(content_of(_record(taken)))) for taken in lately])
        for identity in verdicts.conflicts:
            self._recent.forget(identity)


def _give_up_unstorable(batch: Batch) -> bool:
    """Turn records that no table can hold into refusals; True when there was one.

    Without this a single such record would hold up everything behind it, for ever.
    """
    before = sum(taken.record is not None for taken in batch.messages)
    batch.messages = [storable(taken) for taken in batch.messages]
    return sum(taken.record is not None for taken in batch.messages) < before


def _acks(durable: Sequence[Taken], refused: Sequence[tuple[Taken, str, str]]) -> list[tuple[str, bytes]]:
    """One message an outbox."""
    seqs: dict[OutboxKey, tuple[dict[int, int], dict[str, list[int]]]] = {}
    for taken in durable:
        key, seq = _identity(taken)
        record = _record(taken)
        crc32 = record.crc32 if isinstance(record, StoredChunk) else 0
        seqs.setdefault(key, ({}, {}))[0][seq] = content_sum(record.start_ns, crc32)
    for taken, reason, _ in refused:
        if taken.identity is not None:
            key, seq = taken.identity
            seqs.setdefault(key, ({}, {}))[1].setdefault(reason, []).append(seq)
    acks = []
    for (site, node, epoch), (good, bad) in sorted(seqs.items()):
        ranges = seq_ranges(list(good))
        sums = tuple(sum(good[seq] for seq in range(first, last + 1)) % CONTENT_MODULUS for first, last in ranges)
        refusals = tuple((*r, reason) for reason, numbers in sorted(bad.items()) for r in seq_ranges(numbers))
        acks.append((node_topic(site, node, "ack"), encode_ack(Ack(epoch, ranges, refusals, sums))))
    return acks


def _identity(taken: Taken) -> Identity:
    assert taken.identity is not None
    return taken.identity


def _record(taken: Taken) -> Record:
    assert taken.record is not None
    return taken.record
