"""Which records to publish now, and what an acknowledgement means. Knows no broker; deletes on nothing but an ack.

There is one order, that of acceptance: detections do not overtake a backlog. Acks then are few ranges, what waits is
one number, and nothing can starve; who needs a detection within the second reads it on the node, where it never
waited for the network. A backlog costs a detection at most the catch-up's time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from collectors.pace import Pace
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.outbox import Outbox, Record
from infomae_stream.wire import decode_ack

MAX_BACKOFF: Final = 6  # a record that stays without ack is sent again ever more rarely, up to this many times rarer


@dataclass(slots=True)
class _Sent:
    size: int
    first_ns: int
    again_ns: int
    times: int


@dataclass(frozen=True, slots=True)
class AckResult:
    """refused: how many of the hub's refusals there were, by reason. strange: durable ranges of other content."""

    refused: dict[str, int]
    strange: int = 0


class Uplink:
    """In flight are records that were published and not yet acknowledged, at most `max_inflight_bytes` of them.

    Memory does not grow with the backlog: it holds sequence numbers of what is in flight, and one batch at a time.
    resend_after_s: a record whose ack is so much later than acks are now is sent again. Without the second half of
    that sentence a hub that takes longer is sent everything twice, and takes longer still.
    max_bytes_per_s, start_jitter_s, rng: see Pace; no cap when they are left out.
    """

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        *,
        max_inflight_bytes: int,
        resend_after_s: float,
        max_bytes_per_s: int = 0,
        start_jitter_s: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._max_inflight_bytes = max_inflight_bytes
        self._resend_after_ns = round(resend_after_s * NS_PER_S)
        self._ack_ns = 0.0  # from first sending to ack, smoothed; after a loss too much for a while
        self._inflight: dict[int, _Sent] = {}
        self._newest = 0  # every record up to here has been in flight, but for those of _offered
        self._offered: set[int] = set()  # given out by `due`, and not (yet) taken by the session
        self._pace = Pace(clock, max_bytes_per_s, start_jitter_s, rng or random.Random())
        self._earned_bytes = outbox.written_bytes
        self.inflight_bytes = 0
        self.resent = 0

    def connected(self) -> None:
        """A connection has begun. Raises OutboxError."""
        self._pace.connected(self._outbox.unacked_bytes())

    def due(self) -> list[Record]:
        """Records to publish now, overdue ones first; tell each with `sent` once the session has taken it.

        Raises OutboxError when the outbox cannot be read.
        """
        self._pace.earn(self._outbox.written_bytes - self._earned_bytes)
        self._earned_bytes = self._outbox.written_bytes
        left = self._pace.left()
        if left <= 0:
            return []
        records = self._overdue(left)
        left -= sum(len(r.payload) for r in records)
        room = self._max_inflight_bytes - self.inflight_bytes
        if room <= 0 or left <= 0:
            return records
        self._newest = min((self._newest + 1, *self._offered)) - 1
        # `pending` gives at least one, so that a record above the limit still goes, alone.
        fresh = [
            r
            for r in self._outbox.pending(min(room, left), after_seq=self._newest)
            if r.seq not in self._inflight and (len(r.payload) <= room or not self._inflight)
        ]
        self._offered = {r.seq for r in fresh}
        self._newest = max((self._newest, *self._offered))
        return records + fresh

    def sent(self, record: Record) -> None:
        """The session has taken `record`."""
        self._pace.spend(len(record.payload))
        now_ns = self._clock.monotonic_ns()
        sent = self._inflight.get(record.seq)
        if sent is None:
            sent = self._inflight[record.seq] = _Sent(len(record.payload), now_ns, 0, 0)
            self.inflight_bytes += sent.size
        else:
            self.resent += 1
        patience_ns = round(self._ack_ns) + self._resend_after_ns * 2**sent.times
        sent.again_ns = now_ns + min(patience_ns, self._resend_after_ns * MAX_BACKOFF)
        sent.times += 1
        self._offered.discard(record.seq)

    def handle_ack(self, payload: bytes) -> AckResult:
        """D4, with the outbox's next commit. Raises WireError for garbage, OutboxError when the outbox cannot be used.

        An ack for another epoch (an older outbox of this node) changes nothing.
        """
        ack = decode_ack(payload)
        ranges = self._outbox.put_ack(ack)
        if ack.epoch != self._outbox.epoch:
            return AckResult({})
        refused: dict[str, int] = {}
        for first, last, reason in ack.refused:
            refused[reason] = refused.get(reason, 0) + last - first + 1
        now_ns = self._clock.monotonic_ns()
        for seq in [s for s in self._inflight if any(first <= s <= last for first, last in ranges)]:
            sent = self._inflight.pop(seq)
            self.inflight_bytes -= sent.size
            self._ack_ns += (now_ns - sent.first_ns - self._ack_ns) / 8
        return AckResult(refused, len(ack.durable) + len(ack.refused) - len(ranges))

    def _overdue(self, limit_bytes: int) -> list[Record]:
        now_ns = self._clock.monotonic_ns()
        records = []
        for seq in sorted(seq for seq, sent in self._inflight.items() if sent.again_ns <= now_ns):
            record = self._outbox.record(seq)
            if record is None:  # shed meanwhile; the hub may have it all the same
                self.inflight_bytes -= self._inflight.pop(seq).size
                continue
            records.append(record)
            limit_bytes -= len(record.payload)
            if limit_bytes <= 0:
                break
        return records
