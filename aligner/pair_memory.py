"""The whole set of pairs, seen a batch at a time: the newest u and v of every pair that was drawn.

Legend: B batch, N pairs known, D width of a part, K T F spectrogram.
"""

import hashlib

import torch
from torch import Tensor


class PairMemory:
    """One row a distinct pair, told by the content of its two spectrograms; the oldest goes when `capacity` is full.

    A pair that is drawn again replaces its own row, so `len` counts independent pairs and not draws, and what is
    stored of a pair is at most one pass through the pairs old (a memory bank: Wu et al., CVPR 2018).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.added = 0
        self._slot: dict[bytes, int] = {}
        self._key: list[bytes] = []
        self._parts: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._key)

    def put(self, x1_BKTF: Tensor, x2_BKTF: Tensor, parts: dict[str, Tensor]) -> None:
        """Store row i of every part, (B, D) each, under pair i; a row with a value that is not finite is left out."""
        values = {name: part.detach().double() for name, part in parts.items()}
        finite_B = torch.stack([part.isfinite().all(dim=1) for part in values.values()]).all(dim=0)
        keep = torch.nonzero(finite_B).squeeze(1)
        first, second = x1_BKTF[keep].cpu().numpy(), x2_BKTF[keep].cpu().numpy()
        keys = (
            hashlib.blake2b(a.tobytes() + b.tobytes(), digest_size=16).digest()
            for a, b in zip(first, second, strict=True)
        )
        slots = torch.tensor([self._place(key) for key in keys], dtype=torch.long)
        for name, part in values.items():
            held = self._parts.get(name, part.new_zeros(0, part.shape[1]))
            rows = torch.cat([held, part.new_zeros(len(self) - len(held), part.shape[1])])
            rows[slots] = part[keep]
            self._parts[name] = rows

    def rows(self, name: str) -> Tensor:
        """Part `name` of every known pair, (N, D), double precision."""
        return self._parts[name]

    def _place(self, key: bytes) -> int:
        if key not in self._slot:
            slot = self.added % self.capacity
            if slot < len(self._key):
                del self._slot[self._key[slot]]
                self._key[slot] = key
            else:
                self._key.append(key)
            self._slot[key] = slot
            self.added += 1
        return self._slot[key]
