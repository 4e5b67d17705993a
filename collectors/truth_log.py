"""Every accepted record in a text file, for audits: what the lake must hold, written by the one who accepted it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from infomae_stream.outbox import Accepted, Outbox
from infomae_stream.shedding import ShedRecord

_TAIL_BYTES: Final = 65_536


class TruthLog:
    """`<dir>/<node>.jsonl`: one JSON object a record, in the order of seq, each exactly once.

    Between them, lines of kind "shed" name by seq what was given up, and the time that a gap record must cover. They
    are written just before that is committed: one whose commit failed is there although its record is, too.
    Opening it adds what was committed before a kill and had not been written yet, and cuts off a torn last line.
    """

    def __init__(self, path: Path, outbox: Outbox, *, site: str, node: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._outbox = outbox
        self._site, self._node = site, node
        self._file = path.open("ab")
        self._last_seq = _cut_and_find_last(path, outbox.epoch)
        self.catch_up()

    def add(self, accepted: Iterable[Accepted]) -> None:
        """What a commit gave back, and whatever another process had committed before it."""
        rest = {record.seq: record for record in accepted if record.seq > self._last_seq}
        while page := self._outbox.accepted_after(self._last_seq):
            found = {record.seq: record for record in page}
            found |= {seq: rest[seq] for seq in rest if seq <= page[-1].seq}
            rest = {seq: record for seq, record in rest.items() if seq not in found}
            self._write(found)
        self._write(rest)

    def catch_up(self) -> None:
        """What others have committed meanwhile (the detector)."""
        self.add(())

    def shed(self, records: Iterable[ShedRecord]) -> None:
        """These are about to be given up. `after` tells a restart how far the accepted ones are written."""
        for r in records:
            line = {
                "kind": "shed",
                "of": r.kind,
                "site": self._site,
                "node": self._node,
                "stream": r.stream_id.stream,
                "epoch": self._outbox.epoch,
                "seq": r.seq,
                "start_ns": r.start_ns,
                "end_ns": r.end_ns,
                "after": self._last_seq,
            }
            self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, records: dict[int, Accepted]) -> None:
        for seq in sorted(records):
            r = records[seq]
            line = {
                "kind": r.kind,
                "site": self._site,
                "node": self._node,
                "stream": r.stream,
                "epoch": r.epoch,
                "seq": seq,
                "start_ns": r.start_ns,
                "n_samples": r.n_samples,
                "crc32": r.crc32,
            }
            self._file.write(json.dumps(line).encode() + b"\n")
            self._last_seq = seq
        self._file.flush()


def _cut_and_find_last(path: Path, epoch: str) -> int:
    """Cut off what follows the last line end; return the last accepted seq that is written, 0 of another epoch."""
    with path.open("r+b") as f:
        size = f.seek(0, 2)
        f.seek(max(size - _TAIL_BYTES, 0))
        tail = f.read()
        whole = tail.rfind(b"\n") + 1
        f.truncate(size - len(tail) + whole)
    lines = tail[:whole].splitlines()
    if not lines:
        return 0
    last = json.loads(lines[-1])
    return int(last.get("after", last["seq"])) if last["epoch"] == epoch else 0
