"""Small laws with exactly known information, and planted two-modality data for tests."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from aligner.config import AlignConfig, EncoderConfig, FrontEndConfig, PretrainConfig, TrainConfig
from aligner.evaluation import mean_cosine
from aligner.model import Model
from aligner.trainset import ModalityWindows, TrainSet


@dataclass(frozen=True)
class DiscreteLaw:
    """p(x1, x2, u1, u2) over small integers; u_i depends on x_i alone."""

    table: np.ndarray

    @classmethod
    def example(cls) -> "DiscreteLaw":
        """x1 and x2 share a noisy symbol; u_i is a noisy reading of x_i. All probabilities are multiples of 1/6000."""
        joint = np.array([[20, 5, 5], [5, 20, 5], [10, 10, 20]], dtype=float) / 100.0
        channel_1 = np.array([[9, 1], [5, 5], [1, 9]], dtype=float) / 10.0
        channel_2 = np.array([[5, 1], [1, 5], [3, 3]], dtype=float) / 6.0
        return cls(np.einsum("ab,au,bv->abuv", joint, channel_1, channel_2))

    def entropy(self, *axes: int) -> float:
        others = tuple(a for a in range(4) if a not in axes)
        p = self.table.sum(axis=others).ravel()
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    def information(self, a: tuple[int, ...], b: tuple[int, ...], given: tuple[int, ...] = ()) -> float:
        """I(a; b | given) in nats, by entropies."""
        h = self.entropy
        return h(*a, *given) + h(*b, *given) - h(*a, *b, *given) - (h(*given) if given else 0.0)

    def log_ratio(self, *axes: int) -> np.ndarray:
        """log p(joint of axes) / product of the marginals, at every cell of the table."""
        ratio = np.zeros_like(self.table)
        joint = self.table.sum(axis=tuple(a for a in range(4) if a not in axes), keepdims=True)
        product = np.ones((1, 1, 1, 1))
        for axis in axes:
            product = product * self.table.sum(axis=tuple(a for a in range(4) if a != axis), keepdims=True)
        return ratio + np.log(joint / product)

    def counts(self, total: int) -> np.ndarray:
        """Whole occurrences of each cell in `total` draws that follow the law exactly."""
        counts = np.rint(self.table * total).astype(int)
        assert np.allclose(counts / total, self.table)
        return counts

    def cells(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(n) for n in self.table.shape)))


def small_config(**align: object) -> TrainConfig:
    """A model of a few thousand weights that trains in seconds."""
    return TrainConfig(
        threads=1,
        front_end=FrontEndConfig(window_s=1.0, interval_s=0.25, interval_hop_s=0.25, max_hz=24.0, orientation="none"),
        encoder=EncoderConfig(width=16, depths=(1, 1), heads=2, window=(2, 2), embedding_width=24),
        pretrain=PretrainConfig(epochs=2, batch=32, mask_unit=(2, 2)),
        align=AlignConfig(
            **{  # type: ignore[arg-type]
                "steps": 40,
                "critic_warm_up": 10,
                "pair_batch": 32,
                "window_batch": 32,
                "shared_width": 8,
                "private_width": 8,
                "hidden_width": 32,
                "view_copies": 2,
                **align,
            }
        ),
    )


def planted(people: int = 4, seed: int = 0, first_person: int = 0, paired: bool = True) -> TrainSet:
    """Two sensors of one scene: a class (3, in runs) sets the frequency that both show, each at its own gain and phase.

    Modality "a" has 2 channels at 64 Hz and all labels; "b" has 3 channels at 64 Hz and none.
    """
    rng = np.random.default_rng(seed)
    tone_hz = np.array([4.0, 10.0, 18.0])
    rows: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    group, sequence, label, start = [], [], [], []
    for person in range(first_person, first_person + people):
        for run in range(6):
            symbol = run % 3
            for window in range(5):
                time = np.arange(64) / 64.0
                strength = rng.uniform(0.5, 2.0)
                for name, channels in (("a", 2), ("b", 3)):
                    gain = np.array([1.0, 0.3, -0.6])[:channels] * (1.0 if name == "a" else 4.0)
                    tone = np.sin(2 * np.pi * tone_hz[symbol] * time + rng.uniform(0, 6.28))
                    rows[name].append(strength * gain[:, None] * tone + 0.3 * rng.normal(size=(channels, 64)))
                group.append(f"p{person:02d}")
                sequence.append(100 * person + run)
                label.append(symbol)
                start.append(((100 * person + run) * 100 + window) * 10**9)
    order = np.arange(len(group))

    def modality(name: str, labels: np.ndarray) -> ModalityWindows:
        return ModalityWindows(
            name,
            64.0,
            np.stack(rows[name]).astype(np.float32),
            np.array(start, dtype=np.int64),
            np.array(group),
            np.array(sequence, dtype=np.int64),
            labels,
        )

    truth = np.array(label, dtype=np.int64)
    pairs = np.stack([order, order], axis=1) if paired else np.zeros((0, 2), np.int64)
    return TrainSet(
        {"a": modality("a", truth), "b": modality("b", np.full(len(truth), -1))},
        {("a", "b"): pairs.astype(np.int64)},
        ("slow", "middle", "fast"),
    )


def with_labels(windows: TrainSet, name: str, labels: np.ndarray) -> TrainSet:
    """The same set with truth on modality `name`: for held-out people."""
    from dataclasses import replace

    modalities = {**windows.modalities, name: replace(windows.modalities[name], label_B=labels)}
    return TrainSet(modalities, windows.pairs, windows.classes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gap(model: Model, windows: TrainSet) -> float:
    """Cosine of u of unseen pairs above that of pairs of unlike recordings."""
    u = [model.shared(name, windows.modalities[name].x_BCN) for name in ("a", "b")]
    return mean_cosine(u[0], u[1]) - mean_cosine(u[0], np.roll(u[1], 5, axis=0))
