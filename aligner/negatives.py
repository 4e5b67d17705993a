"""Derangements that shift whole sequences: negatives that are no neighbours in time (METHOD 3.3).

Legend: B batch.
"""

import torch
from torch import Tensor

from infomae_stream.errors import DataError


def sequence_derangements(sequence_B: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Return `count` permutations p, q, .. with sequence[p[i]] != sequence[i] and sequence[p[i]] != sequence[q[i]].

    So none has a fixed point, and any two differ everywhere, by sequence. The rows are ordered by sequence (in random
    order of the sequences) and rolled by multiples of the longest one.
    Raises DataError when the longest sequence fills more than 1 / (count + 1) of the batch.
    """
    labels, inverse, sizes = torch.unique(sequence_B, return_inverse=True, return_counts=True)
    longest, batch = int(sizes.max()), len(sequence_B)
    if (count + 1) * longest > batch:
        raise DataError(
            f"a sequence fills {longest} of {batch} rows, too many for {count} derangements",
            where="negatives",
            fix="draw more sequences into a batch",
        )
    rank = torch.randperm(len(labels), generator=generator)[inverse]
    jitter = torch.rand(batch, generator=generator)
    order = torch.argsort(rank + 0.5 * jitter)
    stride = batch // (count + 1)
    out = []
    for shift in range(1, count + 1):
        permutation = torch.empty(batch, dtype=torch.long)
        permutation[order] = torch.roll(order, shift * stride)
        out.append(permutation)
    return out
