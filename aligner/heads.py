"""What stands on an encoder: the compression of its embedding and the shared and private projections.

Legend: B batch, R raw width of the encoder's output, E embedding, D width of u or v.
"""

import torch
from torch import Tensor, nn


class Compression(nn.Module):
    """r_BR -> e_BE: standardise, then project on the leading principal directions, partly whitened.

    A direction of variance lambda gets standard deviation (lambda / lambda_1) ** (share / 2): share 1 keeps the
    proportions, 0 whitens. Whitened, the many small directions that no other modality predicts drown those that it
    does. Buffers that `fit` sets once from all windows of stage 1, paired or not (METHOD 4: unpaired data give the
    subspace).
    Directions beyond the rank of the data are left at zero.
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, width_in: int, width_out: int, share: float = 0.0) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("mean", torch.zeros(width_in))
        self.register_buffer("weight", torch.zeros(width_out, width_in))

    def fit(self, r_BR: Tensor) -> None:
        """Deterministic; float64 inside, signs fixed so that each direction's largest weight is positive."""
        r = r_BR.double()
        mean, std = r.mean(dim=0), r.std(dim=0).clamp(min=1e-3)
        standard = (r - mean) / std
        values, vectors = torch.linalg.eigh(standard.T @ standard / len(r))
        keep = min(len(self.weight), len(r) - 1, len(values))
        values, vectors = values.flip(0)[:keep], vectors.flip(1)[:, :keep]
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        values = values.clamp(min=1e-6)
        vectors = vectors * torch.sign(largest) / values.sqrt() * (values / values[0]) ** (0.5 * self.share)
        self.mean.copy_(mean)
        self.weight.zero_()
        self.weight[:keep].copy_((vectors / std[:, None]).T)

    def forward(self, r_BR: Tensor) -> Tensor:
        return (r_BR - self.mean) @ self.weight.T


class Projection(nn.Module):
    """e_BE -> u_BD (or v_BD): a linear map plus a two-layer MLP.

    The linear path can be set to a closed-form solution (`start_from`), to which the MLP, whose last layer then starts
    at zero, learns the correction.
    """

    def __init__(self, width_in: int, hidden: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.mlp = nn.Sequential(
            nn.Linear(width_in, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width_out)
        )

    def start_from(self, weight_DE: Tensor, bias_D: Tensor) -> None:
        """Make the projection the given affine map."""
        with torch.no_grad():
            self.linear.weight.copy_(weight_DE)
            self.linear.bias.copy_(bias_D)
            for parameter in self.mlp[-1].parameters():
                parameter.zero_()

    def forward(self, e_BE: Tensor) -> Tensor:
        out: Tensor = self.linear(e_BE) + self.mlp(e_BE)
        return out
