"""What ingest does with messages, without the network: decode, refuse, batch, commit, and tell what to acknowledge.

Nothing is acknowledged that is not on disk: a record in the lake (D2), a refused message in the dead letters. When the
disk refuses, everything stays as it is and the batch may be stored again.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final

from collectors.hub.dead_letters import DeadLetters
from collectors.hub.received import MessageReader, Record, Refused, Taken, claimed_identity, storable
from collectors.hub.recent_contents import RecentContents
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import LakeError
from infomae_stream.stored_chunk import StoredChunk
from infomae_stream.telemetry import EventLog
from infomae_stream.topics import node_topic
from infomae_stream.types import Detection, Gap
from infomae_stream.wire import CONTENT_MODULUS, Ack, content_sum, encode_ack, seq_ranges
from storage.identities import IdentityIndex, OutboxKey
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
    """Messages on their way to the disk: good ones, and those to refuse."""

    good: list[Taken] = field(default_factory=list)
    poison: list[Refused] = field(default_factory=list)
    size: int = 0

    def add(self, message: Taken | Refused) -> None:
        self.size += message.size
        if isinstance(message, Taken):
            self.good.append(message)
        else:
            self.poison.append(message)


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
    refused: list[tuple[Taken | Refused, str, str]] = field(default_factory=list)  # message, reason, text
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
        self._pending: deque[Taken | Refused] = deque()
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
            batch = Batch()
            while self._pending and (most_bytes is None or batch.size < most_bytes):
                batch.add(self._pending.popleft())
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
        if batch.size:
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
        records = [taken.record for taken in verdicts.new]
        newest_ns = max([record.accepted_ns for record in records if isinstance(record, StoredChunk)], default=0)
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
        records = [taken.record for taken in verdicts.new]
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
        for key, run in _by_outbox(batch.good).items():
            seqs = {taken.record.seq for taken in run}
            if len(seqs) == len(run) and index.knows_none(key, min(seqs), max(seqs)):
                verdicts.new += run  # whatever a node sends for the first time
                continue
            for taken in run:
                good.setdefault(taken.identity, []).append(taken)
        known = {identity for identity in good if (*identity[0], identity[1]) in index}
        forgotten = {identity for identity in known if identity not in self._recent}
        banned = quarantined(self._lake, forgotten)
        contents = {
            identity: {content_of(taken.record) for taken in copies}
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
        if batch.poison:
            settled = {t.identity for t in batch.good} - {message.identity for message, _, _ in verdicts.refused}
            for refused in batch.poison:
                self._refuse_poison(refused, verdicts, settled, index)
        return verdicts

    def _differs(self, contents: set[Content], identity: Identity, held: Found) -> bool:
        """Whether an identity has two contents, counting what is stored under it."""
        recent = self._recent.get(identity)
        if len(contents) == 1 and recent is not None:
            return {hash(content) for content in contents} != {recent}
        return len(contents | held.contents.get(identity, set())) > 1

    def _refuse_poison(
        self, refused: Refused, verdicts: _Verdicts, settled: Set[Identity], index: IdentityIndex
    ) -> None:
        """A broken copy never takes away the good one: its letter is kept, and the node is not told to give up."""
        identity = refused.identity
        if identity is not None and (identity in settled or (*identity[0], identity[1]) in index):
            refused = replace(refused, identity=None)
        verdicts.refused.append((refused, refused.reason, refused.text))

    def _bury(self, verdicts: _Verdicts) -> None:
        try:
            for message, reason, text in verdicts.refused:
                if self._dead_letters.keep(message.topic, message.payload, reason, text, message.received_ns):
                    _log.warning("message_refused", reason=reason, topic=message.topic[:200], text=text)
        except OSError as e:
            raise LakeError(f"a dead letter cannot be written: {e.strerror or e}") from e
        for (site, node, epoch), seq in sorted(verdicts.conflicts):
            _log.error("identity_conflict", site=site, node=node, epoch=epoch, seq=seq, fix="was an outbox copied?")

        if verdicts.missing:
            fix = "`lake verify` names torn files: restore them, or start ingest anew to store these records again"
            _log.error("known_and_not_found", records=len(verdicts.missing), first=verdicts.missing[0], fix=fix)

    def _remember(self, verdicts: _Verdicts) -> None:
        looked_up = [taken for taken in verdicts.durable if taken.identity not in self._recent]
        for key, run in _by_outbox([*verdicts.new, *looked_up]).items():
            self._recent.remember(key, {taken.record.seq: hash(content_of(taken.record)) for taken in run})
        self._recent.forget_oldest()
        for identity in verdicts.conflicts:
            self._recent.forget(identity)


def _by_outbox(messages: Iterable[Taken]) -> dict[OutboxKey, list[Taken]]:
    runs: dict[OutboxKey, list[Taken]] = {}
    for taken in messages:
        runs.setdefault(taken.identity[0], []).append(taken)
    return runs


def _give_up_unstorable(batch: Batch) -> bool:
    """Turn records that no table can hold into refusals; True when there was one.

    Without this a single such record would hold up everything behind it, for ever.
    """
    before = len(batch.good)
    checked = [storable(taken) for taken in batch.good]
    batch.good = [taken for taken in checked if isinstance(taken, Taken)]
    batch.poison += [refused for refused in checked if isinstance(refused, Refused)]
    return len(batch.good) < before


def _acks(durable: Sequence[Taken], refused: Sequence[tuple[Taken | Refused, str, str]]) -> list[tuple[str, bytes]]:
    """One message an outbox."""
    bad: dict[OutboxKey, dict[str, list[int]]] = {}
    for message, reason, _ in refused:
        if message.identity is not None:
            key, seq = message.identity
            bad.setdefault(key, {}).setdefault(reason, []).append(seq)
    runs = _by_outbox(durable)
    acks = []
    for key in sorted({*runs, *bad}):
        sum_of = {taken.record.seq: _content_sum(taken.record) for taken in runs.get(key, ())}
        ranges = seq_ranges(list(sum_of))
        sums = tuple(sum([sum_of[seq] for seq in range(first, last + 1)]) % CONTENT_MODULUS for first, last in ranges)
        refusals = tuple((*r, reason) for reason, seqs in sorted(bad.get(key, {}).items()) for r in seq_ranges(seqs))
        site, node, epoch = key
        acks.append((node_topic(site, node, "ack"), encode_ack(Ack(epoch, ranges, refusals, sums))))
    return acks


def _content_sum(record: Record) -> int:
    return content_sum(record.start_ns, record.crc32 if isinstance(record, StoredChunk) else 0)
