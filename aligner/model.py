"""The trained thing: front end, encoder, shared and private projection of each modality, and one linear head.

Legend: B batch, C sensor channels, N samples, K T F spectrogram, E embedding, D shared width, Y classes.
"""

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aligner.config import TrainConfig
from aligner.encoders import encoder_class
from aligner.heads import Compression, Projection
from infomae_stream.config import validate
from infomae_stream.errors import DataError
from infomae_stream.spectrogram import FrontEnd

FORMAT = 1


class ModalityModel(nn.Module):
    """x_BKTF -> e_BE (compressed embedding) -> u_BD shared, v_BD private, of one modality."""

    def __init__(self, shape_KTF: tuple[int, int, int], config: TrainConfig, modality: str = "") -> None:
        super().__init__()
        align = config.align
        self.encoder = encoder_class(config.encoder.name)(shape_KTF, config.encoder.of(modality))
        width = config.encoder.embedding_width
        self.compress = Compression(int(self.encoder.embedding_width), width, config.encoder.variance_share)
        self.shared = Projection(width, align.hidden_width, align.shared_width, config.encoder.dropout)
        self.private = Projection(width, align.hidden_width, align.private_width, config.encoder.dropout)

    def embed(self, x_BKTF: Tensor, masked_BL: Tensor | None = None) -> Tensor:
        out: Tensor = self.compress(self.encoder(x_BKTF, masked_BL))
        return out

    def forward(self, x_BKTF: Tensor) -> Tensor:
        out: Tensor = self.shared(self.embed(x_BKTF))
        return out


class Model(nn.Module):
    """Everything a bundle is exported from. `head` reads the mean of the u of whatever modalities are present."""

    def __init__(self, front_ends: dict[str, FrontEnd], classes: tuple[str, ...], config: TrainConfig) -> None:
        super().__init__()
        self.front_ends = dict(sorted(front_ends.items()))
        self.classes = classes
        self.config = config
        self.parts = nn.ModuleDict(
            {name: ModalityModel(fe.shape_KTF, config, name) for name, fe in self.front_ends.items()}
        )
        self.head = nn.Linear(config.align.shared_width, len(classes))

    def part(self, modality: str) -> ModalityModel:
        """Raises DataError for a modality that the model was not made for."""
        if modality not in self.parts:
            raise DataError(f"no such modality; the model has {', '.join(self.parts)}", where=modality)
        part = self.parts[modality]
        assert isinstance(part, ModalityModel)
        return part

    def spectrograms(self, modality: str, x_BCN: NDArray[np.float32]) -> Tensor:
        """Windows in physical units -> x_BKTF, by the front end that the node runs too."""
        self.part(modality)
        return torch.from_numpy(self.front_ends[modality](x_BCN))

    @torch.no_grad()
    def embed(self, modality: str, x_BCN: NDArray[np.float32]) -> NDArray[np.float32]:
        """e_BE of stage 1: what the baselines start from. No dropout."""
        return self._in_batches(modality, x_BCN, self.part(modality).embed)

    @torch.no_grad()
    def shared(self, modality: str, x_BCN: NDArray[np.float32]) -> NDArray[np.float32]:
        """u_BD, deterministic."""
        return self._in_batches(modality, x_BCN, self.part(modality))

    @torch.no_grad()
    def scores(self, windows: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Class probabilities (B, Y) from any subset of modalities, whose windows have the same B rows in order."""
        u_BD = np.mean([self.shared(name, x_BCN) for name, x_BCN in sorted(windows.items())], axis=0)
        out: NDArray[np.float32] = self.head(torch.from_numpy(u_BD)).softmax(dim=1).numpy()
        return out

    def _in_batches(self, modality: str, x_BCN: NDArray[np.float32], step: Any) -> NDArray[np.float32]:
        part = self.part(modality).eval()
        x_BKTF = self.spectrograms(modality, x_BCN)
        if not len(x_BKTF):
            return np.zeros((0, step(torch.zeros(1, *part.encoder.shape_KTF)).shape[1]), np.float32)
        pieces = x_BKTF.split(256)  # type: ignore[no-untyped-call]
        out: NDArray[np.float32] = torch.cat([step(piece) for piece in pieces]).numpy()
        return out

    def save(self, path: Path) -> None:
        """Write tensors and a JSON text only: nothing that executes when it is read."""
        meta = {
            "format": FORMAT,
            "front_ends": {name: fe.to_dict() for name, fe in self.front_ends.items()},
            "classes": list(self.classes),
            "config": self.config.model_dump(mode="json"),
        }
        torch.save({"meta": json.dumps(meta), "state": self.state_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises DataError for another format or weights that do not fit."""
        record = torch.load(path, weights_only=True, map_location="cpu")
        try:
            meta = json.loads(record["meta"])
            if meta["format"] != FORMAT:
                raise DataError(f"format {meta['format']}, this program reads {FORMAT}", where=str(path))
            fronts = {name: FrontEnd.from_dict(value) for name, value in meta["front_ends"].items()}
            model = cls(fronts, tuple(meta["classes"]), validate(meta["config"], TrainConfig, where=str(path)))
            model.load_state_dict(record["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"not a model of this program: {error}", where=str(path)) from error
        return model
