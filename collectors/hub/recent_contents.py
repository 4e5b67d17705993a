"""What was stored lately, so that a record that is sent again needs no look into the lake."""

from __future__ import annotations

from array import array
from collections import deque

from storage.identities import OutboxKey
from storage.stored import Identity


class RecentContents:
    """Hashes of the contents of some `most` records, the oldest forgotten first; about 150 bytes each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._hashes: dict[OutboxKey, dict[int, int]] = {}
        self._runs: deque[tuple[OutboxKey, array[int]]] = deque()
        self._count = 0

    def __contains__(self, identity: Identity) -> bool:
        return self.get(identity) is not None

    def get(self, identity: Identity) -> int | None:
        return self._hashes.get(identity[0], {}).get(identity[1])

    def remember(self, key: OutboxKey, hashes: dict[int, int]) -> None:
        """A run of one outbox (seq -> hash), which is forgotten as a whole."""
        self._hashes.setdefault(key, {}).update(hashes)
        self._runs.append((key, array("q", hashes)))
        self._count += len(hashes)

    def forget_oldest(self) -> None:
        """Down to `most`, or to the newest run."""
        while self._count > self._most and len(self._runs) > 1:
            key, seqs = self._runs.popleft()
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
