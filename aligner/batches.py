"""Batches of stage 2: draws of sequences, and what an objective sees of them.

Legend: B batch, K T F spectrogram, E embedding, P pairs, L windows of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aligner.augment import augment
from aligner.masking import pixel_mask, window_mask
from aligner.model import ModalityModel
from infomae_stream.errors import DataError


@dataclass(frozen=True)
class ModalityBatch:
    """Windows of one modality: the spectrogram and embeddings of it, of two augmented views and of a masked view.

    `hidden_BTF`: what the masked view did not see. `sequence_B`: the recording of each window.
    """

    x_BKTF: Tensor
    e_BE: Tensor
    view_a_BE: Tensor
    view_b_BE: Tensor
    masked_BE: Tensor
    hidden_BTF: Tensor
    sequence_B: Tensor


@dataclass(frozen=True)
class AlignBatch:
    """`pairs[(m1, m2)]`: two batches whose row i is the same moment. `windows[m]`: windows alone, paired or not."""

    pairs: dict[tuple[str, str], tuple[ModalityBatch, ModalityBatch]]
    windows: dict[str, ModalityBatch]


class SequenceSampler:
    """Draws batches made of whole runs of up to `length` consecutive rows of one sequence.

    Rows must be given in order of time within a sequence. Raises DataError when there are fewer than four sequences:
    then no batch has negatives that are no neighbours in time.
    """

    def __init__(self, sequence_P: NDArray[np.int64], batch: int, length: int, where: str) -> None:
        _, first = np.unique(sequence_P, return_index=True)
        runs: list[NDArray[np.int64]] = []
        for start in np.sort(first):
            rows = np.flatnonzero(sequence_P == sequence_P[start])
            runs.append(rows.astype(np.int64))
        if len(runs) < 4:
            raise DataError(
                f"windows of {len(runs)} recordings only", where=where, fix="collect pairs of at least 4 recordings"
            )
        self.runs = runs
        self.length = length
        self.draws = min(max(4, batch // length), len(runs))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Row numbers (long): each drawn sequence gives one run. No sequence twice, so derangements stay possible;
        with few sequences the batch is smaller than asked."""
        order = torch.randperm(len(self.runs), generator=generator)
        rows = []
        for which in order[: self.draws].tolist():
            run = self.runs[which]
            start = int(torch.randint(max(1, len(run) - self.length + 1), (1,), generator=generator))
            rows.append(torch.from_numpy(run[start : start + self.length]))
        return torch.cat(rows)


class Views:
    """Embeddings of one modality's windows for stage 2.

    With `live` the encoder runs in every step and learns; otherwise `copies` augmented and masked views a window are
    embedded once, here, and drawn from, which is what fits on two cores.
    """

    def __init__(
        self,
        part: ModalityModel,
        x_BKTF: Tensor,
        sequence_B: Tensor,
        *,
        augmentations: Sequence[str],
        mask_ratio: float,
        mask_unit: tuple[int, int],
        copies: int,
        live: bool,
        generator: torch.Generator,
    ) -> None:
        self.part, self.x_BKTF, self.sequence_B = part, x_BKTF, sequence_B
        self.augmentations, self.mask_ratio, self.mask_unit = tuple(augmentations), mask_ratio, mask_unit
        self.live, self.copies, self.generator = live, copies, generator
        if not live:
            part.eval()
            with torch.no_grad():
                self.clean = self._embed(x_BKTF)
                self.augmented = torch.stack([self._embed(x_BKTF, augmented=True) for _ in range(copies)])
                masked = [self._masked(x_BKTF) for _ in range(max(1, copies // 2))]
            self.masked = torch.stack([e for e, _ in masked])
            self.hidden = torch.stack([hidden for _, hidden in masked])

    def batch(self, rows: Tensor) -> ModalityBatch:
        """Embed (or look up) the windows at `rows`; two different views each."""
        x, sequence = self.x_BKTF[rows], self.sequence_B[rows]
        if self.live:
            masked, hidden = self._masked(x)
            a, b = (self.part.embed(self._augmented(x)) for _ in range(2))
            return ModalityBatch(x, self.part.embed(x), a, b, masked, hidden, sequence)
        first = torch.randint(self.copies, (len(rows),), generator=self.generator)
        other = (first + torch.randint(1, max(2, self.copies), (len(rows),), generator=self.generator)) % self.copies
        mask = torch.randint(len(self.masked), (len(rows),), generator=self.generator)
        return ModalityBatch(
            x,
            self.clean[rows],
            self.augmented[first, rows],
            self.augmented[other, rows],
            self.masked[mask, rows],
            self.hidden[mask, rows],
            sequence,
        )

    def _augmented(self, x: Tensor) -> Tensor:
        return augment(x, self.augmentations, self.generator, probability=0.9)

    def _embed(self, x: Tensor, *, augmented: bool = False) -> Tensor:
        pieces = x.split(64 if augmented else 256)  # type: ignore[no-untyped-call]
        return torch.cat([self.part.embed(self._augmented(p) if augmented else p) for p in pieces])

    def _masked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.part.encoder
        mask = window_mask(len(x), encoder.grid, self.mask_unit, self.mask_ratio, self.generator)
        hidden = pixel_mask(mask, encoder.grid, encoder.patch, (x.shape[2], x.shape[3]))
        both = zip(x.split(256), mask.split(256), strict=True)  # type: ignore[no-untyped-call]
        pieces = [self.part.embed(p, m) for p, m in both]
        return torch.cat(pieces), hidden
