"""Contexts without labels: the node (site) of a window and whether something happens in it (METHOD 5, ModAlign).

Legend: B batch, P pairs, K T F spectrogram.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PAIRS_A_CONTEXT = 16
LEVELS = ((True, True), (True, False), (False, True), (False, False))


def onset(x_BKTF: Tensor, content: str) -> Tensor:
    """log STA/LTA of a window, (B,): the loudest interval's level above the mean level of all intervals.

    `content` is the front end's: log magnitudes (behind the signed mean in bin 0) or real and imaginary parts.
    """
    if content == "magnitude":
        level_BT = x_BKTF[:, :, :, 1:].mean(dim=(1, 3))
    else:
        level_BT = (x_BKTF.square().mean(dim=(1, 3)) + 1e-6).log()
    return level_BT.amax(dim=1) - level_BT.mean(dim=1)


class Contexts:
    """Context of a pair: node x event, event being an onset above the median of the pairs.

    There is at most one context for 16 pairs: where there would be more, events are left out, then nodes instead, then
    both. *choice*: STA/LTA has no natural threshold across sensors, the median splits any of them.
    """

    def __init__(self, node_P: NDArray[np.str_], sequence_P: NDArray[np.int64], onset_P: Tensor) -> None:
        self._sequences, first = np.unique(sequence_P, return_index=True)
        nodes, self._node = np.unique(node_P[first], return_inverse=True)
        self._threshold = float(onset_P.median())
        counts = {(by_node, by_event): (len(nodes) if by_node else 1) * (1 + by_event) for by_node, by_event in LEVELS}
        limit = max(1, len(sequence_P) // PAIRS_A_CONTEXT)
        self._by_node, self._by_event = next(level for level in LEVELS if counts[level] <= limit)
        self.count = counts[(self._by_node, self._by_event)]

    def of(self, sequence_B: Tensor, onset_B: Tensor) -> Tensor:
        """Context number of each row, 0 .. count - 1; the sequences must be among those given at first."""
        context = torch.zeros(len(sequence_B), dtype=torch.long)
        if self._by_node:
            place = np.searchsorted(self._sequences, sequence_B.numpy())
            context = torch.from_numpy(self._node[place].astype(np.int64))
        return 2 * context + (onset_B > self._threshold).long() if self._by_event else context
