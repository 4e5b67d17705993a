"""What was stored lately, so that a record that is sent again needs no look into the lake."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable

from storage.identities import OutboxKey
from storage.stored import Identity


class RecentContents:
    """Hashes of the contents of some `most` records, the oldest forgotten first; about 150 bytes each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._hashes: dict[OutboxKey, dict[int, int]] = {}
        self._batches: deque[list[tuple[OutboxKey, array[int]]]] = deque()
        self._count = 0

    def __contains__(self, identity: Identity) -> bool:
        return self.get(identity) is not None

    def get(self, identity: Identity) -> int | None:
        return self._hashes.get(identity[0], {}).get(identity[1])

    def remember(self, contents: Iterable[tuple[Identity, int]]) -> None:
        """One batch; batches are forgotten as a whole."""
        seqs_of: dict[OutboxKey, array[int]] = {}
        for (key, seq), content in contents:
            self._hashes.setdefault(key, {})[seq] = content
            seqs_of.setdefault(key, array("q")).append(seq)
            self._count += 1
        self._batches.append(list(seqs_of.items()))
        while self._count > self._most and len(self._batches) > 1:
            for key, seqs in self._batches.popleft():
                self._count -= len(seqs)
                for seq in seqs:
                    self.forget((key, seq))

    def forget(self, identity: Identity) -> None:
        key, seq = identity
        hashes = self._hashes.get(key)
        if hashes is not None:
            hashes.pop(seq, None)
            if not hashes:
                del self._hashes[key]
