"""A start of the projections that looks at no pair: each modality's own leading principal directions.

Legend: E embedding, D width of u or v.
"""

import torch

from aligner.model import Model


def start_from_principal(model: Model) -> None:
    """Make u the leading directions of e and v the next ones, for every modality: nothing is shared by design.

    `Compression` orders the coordinates of e by variance, so this is a cut. It undoes a closed-form start, which has
    seen the pairs. Where e has no direction left for v, v starts again at the first.
    """
    for name in model.front_ends:
        part = model.part(name)
        shared, width = part.shared.linear.weight.shape
        private = len(part.private.linear.weight)
        whole = torch.eye(width)
        own = torch.zeros(shared, width)
        own[: min(shared, width)] = whole[:shared]
        part.shared.start_from(own, torch.zeros(shared))
        part.private.start_from(whole[(shared + torch.arange(private)) % width], torch.zeros(private))
