"""Windows of one instant at one node -> what they show. No I/O, no clock.

Scores are softmax(head(mean of the u of the modalities that are present)), so any subset of sensors is served.
Legend: C channels, N samples, K T F spectrogram, D embedding, Y classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.runtimes import Runtime
from infomae_stream.bundle import Bundle
from infomae_stream.errors import BundleError
from infomae_stream.golden import ALL
from infomae_stream.types import Window

GOLDEN_TOLERANCE: Final = 1e-3
DROP_REASONS: Final = ("coverage", "not_finite", "same_modality", "threshold")


@dataclass(frozen=True, slots=True)
class Draft:
    """A detection before it is numbered. `modalities`, sorted, are those that took part; the rest were missing."""

    site: str
    node: str
    start_ns: int
    end_ns: int
    label: str
    scores: dict[str, float]
    modalities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """The outcome of looking at one instant: a draft or none, and the windows not used, by reason.

    ran: whether there was anything for the graphs to run on.
    """

    draft: Draft | None
    ran: bool
    dropped: Counter[str]


class Detector:
    """Raises BundleError(contract) when a graph cannot be loaded or has other shapes than the manifest says."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle = bundle
        manifest = bundle.manifest
        dim = next(iter(manifest.modalities.values())).dim
        self._front_ends = bundle.front_ends
        self._encoders = {
            name: runtime.load(
                bundle.files[contract.encoder],
                input_shape=(1, *self._front_ends[name].shape_KTF),
                output_shape=(1, dim),
                where=f"bundle {bundle.version}: {contract.encoder}",
            )
            for name, contract in manifest.modalities.items()
        }
        self._head = runtime.load(
            bundle.files[manifest.head],
            input_shape=(1, dim),
            output_shape=(1, len(bundle.classes)),
            where=f"bundle {bundle.version}: {manifest.head}",
        )

    def scores(self, x: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities (Y,) from modality -> x_CN in physical units; at least one modality.

        Raises BundleError(runtime) when a graph fails or gives something that is not finite.
        """
        u_1D = np.mean([self._encoders[name](self._front_ends[name](x_CN[None])) for name, x_CN in x.items()], axis=0)
        logits_Y = self._head(np.asarray(u_1D, dtype=np.float32))[0].astype(np.float64)
        if not np.isfinite(logits_Y).all():
            raise BundleError("gives NaN or infinity", reason="runtime", where=f"bundle {self.bundle.version}")
        e_Y = np.exp(logits_Y - logits_Y.max())
        return np.asarray(e_Y / e_Y.sum())

    def look(self, windows: Sequence[Window]) -> Look:
        """Windows of one instant of one site and node, each of a modality of the bundle and fit for its encoder.

        Raises BundleError(runtime) as `scores` does.
        """
        used, dropped = self._choose(windows)
        if not used:
            return Look(None, False, dropped)
        scores_Y = self.scores({name: window.x_CN for name, window in used.items()})
        scores = dict(zip(self.bundle.classes, scores_Y.tolist(), strict=True))
        label = max(scores, key=lambda name: scores[name])
        if scores[label] < self.bundle.manifest.thresholds.get(label, 0.0):
            dropped["threshold"] += len(used)
            return Look(None, True, dropped)
        first = next(iter(used.values()))
        grid = self.bundle.manifest.modalities[first.spec.modality].grid
        draft = Draft(
            site=first.spec.id.site,
            node=first.spec.id.node,
            start_ns=first.start_ns,
            end_ns=first.start_ns + grid.window_ns,
            label=label,
            scores=scores,
            modalities=tuple(sorted(used)),
        )
        return Look(draft, True, dropped)

    def _choose(self, windows: Sequence[Window]) -> tuple[dict[str, Window], Counter[str]]:
        """One good window a modality, the best covered one where two streams share a modality."""
        dropped: Counter[str] = Counter()
        used: dict[str, Window] = {}
        for window in sorted(windows, key=lambda w: (-w.coverage, w.spec.id)):
            modality = window.spec.modality
            if window.coverage < self.bundle.manifest.modalities[modality].min_coverage:
                dropped["coverage"] += 1
            elif not np.isfinite(window.x_CN).all():
                dropped["not_finite"] += 1
            elif modality in used:
                dropped["same_modality"] += 1
            else:
                used[modality] = window
        return used, dropped


def check_golden(detector: Detector) -> float:
    """Run the golden vectors, each modality alone and all together; return the largest difference of a score.

    Raises BundleError(golden) when it is more than 1e-3: this node would not compute what the trainer computed.
    """
    golden = detector.bundle.golden
    worst = 0.0
    for name, want_BY in golden.scores.items():
        modalities = list(golden.windows) if name == ALL else [name]
        for b, want_Y in enumerate(want_BY):
            got_Y = detector.scores({modality: golden.windows[modality][b] for modality in modalities})
            worst = max(worst, float(np.abs(got_Y - want_Y).max()))
    if worst > GOLDEN_TOLERANCE:
        raise BundleError(
            f"scores differ from the golden ones by {worst:.2g}, at most {GOLDEN_TOLERANCE:g} is taken",
            reason="golden",
            where=f"bundle {detector.bundle.version}",
        )
    return worst
