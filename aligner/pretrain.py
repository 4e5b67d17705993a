"""Stage 1: masked pretraining of one modality, on all its windows, paired or not (METHOD 2).

Legend: B batch, K channels, T intervals, F bins, L patches.
"""

import math

import torch
from torch import Tensor

from aligner.config import TrainConfig
from aligner.masked_decoder import MirroredDecoder
from aligner.masking import masked_mse, pixel_mask, window_mask
from aligner.model import ModalityModel
from aligner.progress import Progress
from infomae_stream.errors import TrainingError

MAX_SKIPPED_SHARE = 0.1


def bin_statistics(x_BKTF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel and frequency bin, shaped to broadcast: the target is standardised by them.

    Per bin and not per patch: normalising a 1x1 patch leaves nothing. A bin that never changes gets deviation 1.
    """
    mean = x_BKTF.mean(dim=(0, 2), keepdim=True)
    std = x_BKTF.std(dim=(0, 2), keepdim=True)
    return mean, torch.where(std > 1e-4, std, torch.ones_like(std))


def cosine(step: int, total: int, warm_up: int) -> float:
    """Learning-rate factor: linear to 1 over `warm_up` steps, then half a cosine to 0."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def pretrain_modality(
    part: ModalityModel, x_BKTF: Tensor, config: TrainConfig, progress: Progress, modality: str
) -> list[float]:
    """Train `part.encoder` in place and fit `part.compress`; return the mean loss of every epoch.

    Mask units are Swin windows of patches. Raises TrainingError when more than a tenth of the steps is not finite.
    """
    settings = config.pretrain
    generator = torch.Generator().manual_seed(config.seed)
    encoder = part.encoder
    decoder = MirroredDecoder(encoder, config.encoder.heads)
    mean, std = bin_statistics(x_BKTF)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.weight_decay)
    per_epoch = max(1, len(x_BKTF) // settings.batch)
    total, skipped, history = settings.epochs * per_epoch, 0, []
    unit = settings.mask_unit
    part.train()
    for epoch in range(settings.epochs):
        order = torch.randperm(len(x_BKTF), generator=generator)
        losses = []
        batches = order.split(settings.batch)[:per_epoch]  # type: ignore[no-untyped-call]
        for step, index in enumerate(batches):
            factor = cosine(epoch * per_epoch + step, total, max(1, total // 20))
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * factor
            x = x_BKTF[index]
            masked_BL = window_mask(len(x), encoder.grid, unit, settings.mask_ratio, generator)
            hidden = pixel_mask(masked_BL, encoder.grid, encoder.patch, (x.shape[2], x.shape[3]))
            loss = masked_mse(decoder(encoder.tokens(x, masked_BL)), (x - mean) / std, hidden)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            if not bool(torch.isfinite(norm)):
                skipped += 1
                continue
            optimiser.step()
            losses.append(loss.item())
        history.append(sum(losses) / max(1, len(losses)))
        progress(f"pretrain {modality}", epoch + 1, settings.epochs, {"loss": history[-1]})
    if skipped > MAX_SKIPPED_SHARE * total:
        raise TrainingError(
            f"{skipped} of {total} steps were not finite", where=f"pretrain {modality}", fix="lower pretrain.rate"
        )
    part.eval()
    with torch.no_grad():
        part.compress.fit(torch.cat([encoder(piece) for piece in x_BKTF.split(256)]))  # type: ignore[no-untyped-call]
    return history
