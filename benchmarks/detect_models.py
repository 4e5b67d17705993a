"""The two trained models of benchmarks/detect.py: the reference's layout (two-sided, padded) and ours (one-sided).

Both see the same windows of the SYNTHETIC scene, are made with the same seed, and learn its redundant factor (8
classes) end to end with equal settings. The map from tokens to the embedding stays random in both. Scene: 2 s of
seismic and acoustic for `mod`; for `har` the scene's IMU, read at half its rate, as accelerometer and gyroscope, and
two stand-ins made of it, since the scene has neither magnetometer nor light.
Legend: B windows, C channels, N samples, K T F spectrogram, Y classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aligner.config import TrainConfig
from aligner.evaluation import macro_f1
from aligner.model import ModalityModel, Model
from aligner.train import front_end_for
from aligner.trainset import ModalityWindows
from benchmarks.rig import say
from infomae_stream.scene import draw_scene_windows
from infomae_stream.spectrogram import FrontEnd, SpectrogramSpec

CLASSES = tuple(f"r{level}" for level in range(8))
RATES_HZ = {"seismic": 100.0, "acoustic": 8000.0}
HAR_RATE_HZ = 50.0
BATCH, RATE = 16, 1e-3


@dataclass(frozen=True)
class Labelled:
    """Windows by modality, rows in the same order, and their classes."""

    windows: dict[str, ModalityWindows]
    label_B: NDArray[np.int64]


def draw(preset: str, n: int, seed: int) -> Labelled:
    """`n` windows at 10..20 dB without dropouts."""
    easy: dict[str, Any] = {"snr_db": (10.0, 20.0), "dropout": 0.0}
    if preset == "mod":
        scene = draw_scene_windows(n, seed, **easy)
        x, rates = scene.x, RATES_HZ
    else:
        scene = draw_scene_windows(n, seed, kinds=("imu",), window_s=2.5, **easy)
        imu = scene.x["imu"]
        acc, gyro = imu[:, :3], imu[:, 3:]
        magnetic, light = acc[:, ::-1] - acc.mean(axis=1, keepdims=True), np.abs(acc).sum(axis=1, keepdims=True)
        x = {"accelerometer": acc, "gyroscope": gyro, "magnetometer": magnetic, "light": light}
        rates = dict.fromkeys(x, HAR_RATE_HZ)
    rows, label_B = np.arange(n), scene.r_B
    windows = {
        name: ModalityWindows(
            name, rates[name], np.ascontiguousarray(x[name], np.float32), rows, np.full(n, "s1"), rows, label_B
        )
        for name in sorted(x)
    }
    return Labelled(windows, label_B)


class Reference(nn.Module):
    """The same parts on two-sided spectra, padded until Swin windows and mergings fit, as the reference does.

    Padding takes part like any token. The blocks equal timm's (tests/aligner/test_swin.py), in function and in time.
    """

    def __init__(self, data: Labelled, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.front_ends = {
            name: FrontEnd.fit(w.x_BCN, two_sided_spec(w, config)) for name, w in sorted(data.windows.items())
        }
        self.parts = nn.ModuleDict(
            {
                name: ModalityModel(self.inputs(name, w.x_BCN[:1]).shape[1:], config, name)
                for name, w in data.windows.items()
            }
        )
        self.head = nn.Linear(config.align.shared_width, len(CLASSES))

    def inputs(self, name: str, x_BCN: NDArray[np.float32]) -> Tensor:
        front_end, encoder = self.front_ends[name], self.config.encoder.of(name)
        x_BKTF = two_sided(front_end(x_BCN), front_end.spec.interval_samples)
        unit = 2 ** (len(encoder.depths) - 1)
        pad = []
        for axis in (0, 1):
            size, step = x_BKTF.shape[2 + axis], encoder.patch[axis] * encoder.window[axis] * unit
            pad.append((0, -size % step))
        return torch.from_numpy(np.pad(x_BKTF, [(0, 0), (0, 0), *pad]))


def two_sided_spec(windows: ModalityWindows, config: TrainConfig) -> SpectrogramSpec:
    front = config.front_end
    lengths = (front.window_s, front.interval_s, front.interval_hop_s)
    return SpectrogramSpec(windows.rate_hz, *lengths, channels=windows.x_BCN.shape[1], max_hz=None)


def two_sided(x_BKTF: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """One-sided spectrum of real signals (real parts, then imaginary) -> all `samples` bins: conjugates repeat it."""
    again_F = samples - np.arange(x_BKTF.shape[3], samples)
    real, imaginary = np.split(x_BKTF, 2, axis=1)
    mirrored = np.concatenate([real[..., again_F], -imaginary[..., again_F]], axis=1)
    return np.concatenate([x_BKTF, mirrored], axis=3)


class Ours(Model):
    """The product's model; `inputs` as the reference has it."""

    def inputs(self, name: str, x_BCN: NDArray[np.float32]) -> Tensor:
        return self.spectrograms(name, x_BCN)


Trained = Reference | Ours


def untrained(kind: str, data: Labelled, config: TrainConfig) -> Trained:
    torch.manual_seed(config.seed)
    if kind == "reference":
        model: Trained = Reference(data, config)
    else:
        fronts = {name: front_end_for(w, config.front_end) for name, w in data.windows.items()}
        model = Ours(fronts, CLASSES, config)
    for part in model.parts.values():
        nn.init.normal_(part.compress.weight, std=part.encoder.embedding_width**-0.5)
    return model


def logits(model: Trained, x: dict[str, Tensor]) -> Tensor:
    """Head on the mean u, (B, Y)."""
    out: Tensor = model.head(torch.stack([model.parts[name](x_BKTF) for name, x_BKTF in x.items()]).mean(dim=0))
    return out


def all_inputs(model: Trained, data: Labelled) -> dict[str, Tensor]:
    return {name: model.inputs(name, w.x_BCN) for name, w in data.windows.items()}


def train(model: Trained, data: Labelled, epochs: int, kind: str) -> None:
    """Cross-entropy, AdamW, one cycle of the rate; the same order of batches for the same seed."""
    x, label_B = all_inputs(model, data), torch.from_numpy(data.label_B)
    generator = torch.Generator().manual_seed(model.config.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    steps = len(label_B) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=epochs * steps)
    model.train()
    for epoch in range(epochs):
        order, total = torch.randperm(len(label_B), generator=generator), 0.0
        for index in order[: steps * BATCH].view(steps, BATCH):
            loss = nn.functional.cross_entropy(
                logits(model, {name: x_BKTF[index] for name, x_BKTF in x.items()}), label_B[index]
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
        say(f"{kind}: epoch {epoch + 1} of {epochs}, loss {total / steps:.3f}")
    model.eval()


def trained(kind: str, data: Labelled, config: TrainConfig, epochs: int, folder: Path) -> Trained:
    """From `folder` when it was trained there with these settings, else trained now and kept."""
    model = untrained(kind, data, config)
    key = f"{config.preset}-{kind}-{len(data.label_B)}x{epochs}-seed{config.seed}"
    path = folder / f"{key}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model, data, epochs, kind)
        torch.save(model.state_dict(), path)
    model.eval()
    return model


def score(predicted_BY: NDArray[np.float32], data: Labelled) -> float:
    return macro_f1(data.label_B, predicted_BY.argmax(axis=1).astype(np.int64), len(CLASSES))
