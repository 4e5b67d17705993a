"""The real outbox on the model of a disk, and what must hold after every power cut (D1, D4).

`OutboxUnderPower` does what a node does and notes when each call returned. `cut` goes back to any moment since the last
cut, opens what survived with the real code, and raises AssertionError when

- a record whose commit had returned is missing or changed (unless an acknowledgement of it was under way);
- of an interrupted commit, or of its named value, a part is there;
- a sequence number names another record than it once did, or the epoch is another;
- an acknowledged record waits again, or the sums disagree with the rows;
- a record was shed and no gap record tells of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.outbox import Accepted, Outbox
from infomae_stream.shedding import REASON, SheddingPolicy
from infomae_stream.types import ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import Ack, decode_ack, decode_chunk, decode_gap
from tests.faults import power_calls, power_sqlite
from tests.faults.power_files import Disk, Harm

STREAM: Final = StreamId("s01", "s01-phone", "imu")
SPEC: Final = StreamSpec(STREAM, "imu", 100.0, ("x", "y"), ("m/s2", "m/s2"), (400.0, 400.0))
_QUALITY: Final = ClockQuality("test", 0, 1000, True)
_PLACE: Final = Path("var/lib/infomae/s01-phone/outbox.sqlite")  # not one of the folders is there at first
_KEEP_S: Final = 60.0
_MAX_AGE_S: Final = 100_000.0
_SPACING_NS: Final = 1000 * NS_PER_S  # from record to record; more than the longest lasts
_NEVER: Final = 1 << 60  # as the position when something was promised


@dataclass(slots=True)
class _Batch:
    """One commit, between two positions. `serials`: its records' start / _SPACING_NS."""

    number: int
    serials: list[int]
    began: int
    returned: int = 0
    accepted: list[Accepted] = field(default_factory=list)


@dataclass(slots=True)
class _Mark:
    """Sequence numbers first..last, acknowledged or purged between two positions."""

    seqs: set[int]
    began: int
    returned: int


class OutboxUnderPower:
    """Not for threads. `folder` is empty; every cut goes on in a new one below it."""

    def __init__(self, folder: Path, *, real_syncs: bool = False) -> None:
        self._folder = folder
        self._generation = 0
        self._real_syncs = real_syncs
        self.clock = ManualClock()
        self.disk = Disk(self._next_root())
        self.disk.root.mkdir(parents=True)
        self._batches: list[_Batch] = []
        self._acks: list[_Mark] = []
        self._purges: list[_Mark] = []
        self._sheds: list[_Mark] = []
        self._numbers = self._serial = 0
        self._opened_at = 0  # the position when the epoch was known to the caller
        self._old: list[Outbox] = []
        self.outbox = self._open()
        self.epoch, self._opened_at = self.outbox.epoch, self.disk.position

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, what the program does is told to the disk."""

        def current() -> Disk:
            return self.disk

        syncs = self._real_syncs
        with power_sqlite.recorded(current, real_syncs=syncs), power_calls.recorded(current, real_syncs=syncs):
            yield

    # -- what a node does ----------------------------------------------------------------------------------------------

    def commit(self, chunks: int, gaps: int = 0, samples: int = 100) -> list[Accepted]:
        self._numbers += 1
        batch = _Batch(self._numbers, [], self.disk.position)
        for _ in range(chunks):
            samples_CN = np.full((2, samples), self._serial % 1000, np.int16)
            self.outbox.put_chunk(SPEC, self._take_serial(batch) * _SPACING_NS, samples_CN, _QUALITY)
        for _ in range(gaps):
            start_ns = self._take_serial(batch) * _SPACING_NS
            self.outbox.put_gap(STREAM, start_ns, start_ns + NS_PER_S, "sensor", 100)
        self.outbox.put_state("batch", str(batch.number).encode())
        self._batches.append(batch)
        given = max((a.seq for a in self.accepted()), default=0)
        with self.watched():
            batch.accepted = self.outbox.commit()
        batch.returned = self.disk.position
        assert all(a.seq > given for a in batch.accepted), f"seq {batch.accepted[0].seq} is given out a second time"
        return batch.accepted

    def acknowledge(self, first: int, last: int) -> None:
        last = min(last, self.outbox.last_seq())
        if not 0 < first <= last:
            return
        mark = _Mark(set(range(first, last + 1)), self.disk.position, 0)
        with self.watched():
            self.outbox.acknowledge(Ack(self.outbox.epoch, ((first, last),)))
        mark.returned = self.disk.position
        self._acks.append(mark)

    def hear(self, ack: bytes, handle: Callable[[bytes], object]) -> None:
        """`handle` an ack of the hub; the outbox may keep it in memory until its next commit."""
        told = decode_ack(ack)
        seqs = {seq for first, last, *_ in (*told.durable, *told.refused) for seq in range(first, last + 1)}
        self._acks.append(_Mark(seqs, self.disk.position, _NEVER))
        with self.watched():
            handle(ack)

    def write_acks(self) -> None:
        with self.watched():
            self.outbox.write_acks()

    def accepted(self) -> list[Accepted]:
        """Everything whose commit returned or was found after a cut, shed or not."""
        return [a for batch in self._batches for a in batch.accepted]

    def purge(self) -> None:
        self.clock.advance(2 * _KEEP_S)
        mark = _Mark(set().union(*(ack.seqs for ack in self._acks)), self.disk.position, 0)
        with self.watched():
            self.outbox.purge(_KEEP_S)
        mark.returned = self.disk.position
        self._purges.append(mark)

    def shed(self) -> None:
        """Give up every chunk that waits; gap records take their places."""
        self.clock.advance(2 * _MAX_AGE_S)
        chunks = {a.seq for a in self.outbox.accepted_after(0, 1_000_000) if a.kind == "chunk"}
        mark = _Mark(chunks & {r.seq for r in self.outbox.pending(1 << 40)}, self.disk.position, 0)
        with self.watched():
            self.outbox.shed_expired()
        mark.returned = self.disk.position
        self._sheds.append(mark)

    def stop_and_start(self) -> None:
        """A clean stop: the log is written back and removed."""
        with self.watched():
            self.outbox.close()
        self.outbox = self._open()

    def kill(self) -> None:
        """The process is gone, what it wrote is in the page cache, and a new one starts."""
        self._leave(self.disk.after_kill(self._next_root()))
        self._check(self.disk.position)

    def cut(self, position: int, harm: Harm) -> None:
        """The power goes after `position` operations, and comes back."""
        self._leave(self.disk.after_cut(position, harm, self._next_root()))
        self._check(position)
        self._forget_after(position)

    def close(self) -> None:
        for outbox in (*self._old, self.outbox):
            outbox.close()

    # -- what must hold ------------------------------------------------------------------------------------------------

    def _check(self, position: int) -> None:
        there = {a.seq: a for a in self.outbox.accepted_after(0, 1_000_000)}
        waiting = {r.seq: r for r in self.outbox.pending(1 << 40)}
        if self._opened_at <= position:
            assert self.outbox.epoch == self.epoch, "another epoch than before: every identity starts anew"
        gone = set().union(*(mark.seqs for mark in self._purges if mark.began < position))
        maybe = set().union(*(mark.seqs for mark in self._acks if mark.began < position))
        never = set().union(*(mark.seqs for mark in self._acks if mark.returned <= position))
        shed = self._check_shed(position, there)
        newest, known = 0, set()
        for batch in self._batches:
            if batch.returned > position and batch.began >= position:
                continue
            known |= set(batch.serials)
            if batch.returned <= position:
                newest = batch.number
                for a in batch.accepted:
                    if a.seq in shed and a.seq not in there:
                        continue
                    assert a.seq in gone or there.get(a.seq) == a, (
                        f"seq {a.seq} was accepted, and is {there.get(a.seq)}"
                    )
                    assert a.seq in maybe or a.seq in waiting, f"seq {a.seq} does not wait, and was not acknowledged"
            else:
                newest = _check_interrupted(batch, there, newest)
        state = self.outbox.get_state("batch")
        assert int(state or 0) == newest, f"the state is of batch {state!r}, the records of {newest}"
        strange = {a.start_ns // _SPACING_NS for a in there.values()} - known
        assert not strange, f"records that nobody put: {strange}"
        assert not never & waiting.keys(), f"acknowledged, and waiting again: {sorted(never & waiting.keys())}"
        assert self.outbox.last_seq() >= max((a.seq for b in self._done(position) for a in b.accepted), default=0)
        assert self.outbox.unacked_bytes() == sum(len(r.payload) for r in waiting.values())
        for seq, record in waiting.items():
            if there[seq].kind == "chunk":
                assert decode_chunk(record.payload).start_ns == there[seq].start_ns

    def _check_shed(self, position: int, there: dict[int, Accepted]) -> set[int]:
        """What may have been shed; each of these that is gone lies in a gap record, unless that may be purged."""
        shed = set().union(*(mark.seqs for mark in self._sheds if mark.began < position))
        if not any(purge.began < position for purge in self._purges if purge.began > 0):
            rows = self.outbox._db.execute("SELECT payload FROM records WHERE kind = 'gap'").fetchall()
            gaps = [gap for gap in (decode_gap(payload) for (payload,) in rows) if gap.reason == REASON]
            for a in self.accepted():
                if a.seq in shed and a.seq not in there:
                    told = any(gap.start_ns <= a.start_ns < gap.end_ns for gap in gaps)
                    assert told, f"seq {a.seq} was shed, and no gap record says so"
        return shed

    def _done(self, position: int) -> list[_Batch]:
        return [b for b in self._batches if b.returned <= position]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _forget_after(self, position: int) -> None:
        """What is there now is durable, and counts as done before everything that comes."""
        found = self.outbox.accepted_after(0, 1_000_000)
        there, starts = {a.seq for a in found}, {a.start_ns for a in found}
        waiting = {r.seq for r in self.outbox.pending(1 << 40)}
        kept = []
        for batch in self._batches:
            survived = batch.began < position and any(a.start_ns in starts for a in batch.accepted)
            if batch.returned <= position or survived:
                batch.began, batch.returned = -1, 0
                kept.append(batch)
        self._batches = kept
        accepted = {a.seq for b in kept for a in b.accepted}
        self._acks = [_Mark(accepted - waiting, -1, 0)]
        self._purges = [_Mark(accepted - there, -1, 0)]
        self._sheds = []
        self._opened_at = 0 if self.outbox.epoch == self.epoch else self.disk.position
        self.epoch = self.outbox.epoch

    def _leave(self, disk: Disk) -> None:
        self._old.append(self.outbox)
        self.disk = disk
        self.outbox = self._open()

    def _open(self) -> Outbox:
        with self.watched():
            path = self.disk.root / _PLACE
            policy = SheddingPolicy(max_age_s=_MAX_AGE_S)
            return Outbox.open(path, self.clock, max_bytes=100_000_000, reserve_bytes=0, shedding=policy)

    def _take_serial(self, batch: _Batch) -> int:
        self._serial += 1
        batch.serials.append(self._serial)
        return self._serial

    def _next_root(self) -> Path:
        self._generation += 1
        return self._folder / f"disk{self._generation}"


def _check_interrupted(batch: _Batch, there: dict[int, Accepted], newest: int) -> int:
    found = [a for a in there.values() if a.start_ns // _SPACING_NS in batch.serials]
    assert len(found) in (0, len(batch.serials)), f"{len(found)} of the {len(batch.serials)} records of a commit"
    if found:
        batch.accepted = sorted(found, key=lambda a: a.seq)
        return batch.number
    return newest
