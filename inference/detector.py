"""Windows of one instant at one node -> what they show. No I/O, no clock.

Scores are softmax(head(mean of the u of the modalities that are present)), so any subset of sensors is served.
Legend: C channels, N samples, K T F spectrogram, D embedding, Y classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from inference.runtimes import Runtime
from infomae_stream.bundle import Bundle
from infomae_stream.errors import BundleError
from infomae_stream.golden import ALL
from infomae_stream.types import Window

Precision = Literal["fp32", "int8"]
# fp32 differs between processors by rounding alone. int8 rounds each activation to 1 of 256 steps: a score may move by
# a hundredth and more, and 0.05 still leaves the class alone wherever fp32 preferred it by 0.1.
TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-3, "int8": 0.05}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the windows of one instant show: a score a class, before any threshold.

    modalities, sorted, took part; missing, sorted, are the bundle's others: absent, badly covered or broken.
    attribution: how much the highest score falls when one modality is left out; empty when only one took part.
    """

    site: str
    node: str
    start_ns: int
    end_ns: int
    scores: dict[str, float]
    modalities: tuple[str, ...]
    missing: tuple[str, ...]
    attribution: dict[str, float]


@dataclass(frozen=True, slots=True)
class Look:
    """The outcome of looking at one instant: what was seen, and the windows not used, by reason.

    seen: None when there was nothing for the graphs to run on.
    broken: the modalities whose graph failed on a good window; the others were seen without them.
    """

    seen: Seen | None
    dropped: Counter[str]
    broken: tuple[str, ...] = ()


class Detector:
    """precision: int8 takes the bundle's int8 encoders; the head is fp32 in both.

    Raises BundleError(contract) when a graph is not there, cannot be loaded or has other shapes than the manifest says.
    `bundle` holds no files any more: the graphs have them.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, precision: Precision = "fp32") -> None:
        manifest = bundle.manifest
        where = f"bundle {bundle.version}"
        if precision == "int8" and not manifest.has_int8:
            raise BundleError("has no int8 graphs", reason="contract", where=where)
        self.bundle = bundle.without_files()
        self.precision: Precision = precision
        self._where = where
        dim = next(iter(manifest.modalities.values())).dim
        self._front_ends = bundle.front_ends
        self._encoders = {
            name: runtime.load(
                bytes(bundle.files[contract.graphs[precision == "int8"]]),
                input_shape=(1, *self._front_ends[name].shape_KTF),
                output_shape=(1, dim),
                where=f"{where}: {contract.graphs[precision == 'int8']}",
            )
            for name, contract in manifest.modalities.items()
        }
        self._head = runtime.load(
            bytes(bundle.files[manifest.head]),
            input_shape=(1, dim),
            output_shape=(1, len(bundle.classes)),
            where=f"{where}: {manifest.head}",
        )

    def embed(self, modality: str, x_CN: NDArray[np.float32]) -> NDArray[np.float32]:
        """u_1D of one window in physical units.

        Raises BundleError(runtime) when the graph fails or gives something that is not finite.
        """
        u_1D = self._encoders[modality](self._front_ends[modality](x_CN[None]))
        if not np.isfinite(u_1D).all():
            raise BundleError("gives NaN or infinity", reason="runtime", where=f"{self._where}: encoder of {modality}")
        return u_1D

    def scores(self, x: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities (Y,) from modality -> x_CN in physical units; at least one. Raises BundleError(runtime)."""
        return self.classify({name: self.embed(name, x_CN) for name, x_CN in x.items()})

    def classify(self, u: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities (Y,) from modality -> u_1D; at least one. Raises BundleError(runtime) as `embed`."""
        logits_Y = self._head(np.mean(list(u.values()), axis=0, dtype=np.float32))[0].astype(np.float64)
        if not np.isfinite(logits_Y).all():
            raise BundleError("gives NaN or infinity", reason="runtime", where=f"{self._where}: head")
        e_Y = np.exp(logits_Y - logits_Y.max())
        return np.asarray(e_Y / e_Y.sum())

    def look(self, windows: Sequence[Window]) -> Look:
        """Windows of one instant of one site and node, each of a modality of the bundle and fit for its encoder.

        Raises BundleError(runtime) when the graphs give nothing: every encoder or the head fails.
        """
        used, dropped = self._choose(windows)
        u: dict[str, NDArray[np.float32]] = {}
        failures: dict[str, BundleError] = {}
        for name in sorted(used):
            try:
                u[name] = self.embed(name, used[name].x_CN)
            except BundleError as e:  # the other sensors still see
                failures[name] = e
        if not used:
            return Look(None, dropped)
        if not u:
            raise next(iter(failures.values()))
        if failures:
            dropped["encoder"] += len(failures)
        scores_Y = self.classify(u)
        first = next(iter(used.values()))
        seen = Seen(
            site=first.spec.id.site,
            node=first.spec.id.node,
            start_ns=first.start_ns,
            end_ns=first.start_ns + self.bundle.manifest.modalities[first.spec.modality].grid.window_ns,
            scores=dict(zip(self.bundle.classes, scores_Y.tolist(), strict=True)),
            modalities=tuple(u),
            missing=tuple(sorted(set(self.bundle.manifest.modalities) - set(u))),
            attribution=self._attribution(u, scores_Y),
        )
        return Look(seen, dropped, tuple(failures))

    def _attribution(self, u: Mapping[str, NDArray[np.float32]], scores_Y: NDArray[np.float64]) -> dict[str, float]:
        """The head once more without each modality: what its embedding added to the highest score, or took from it."""
        if len(u) == 1:
            return {}
        y = int(scores_Y.argmax())
        without = {left_out: {name: u_1D for name, u_1D in u.items() if name != left_out} for left_out in u}
        return {left_out: float(scores_Y[y] - self.classify(rest)[y]) for left_out, rest in without.items()}

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

    Raises BundleError(golden) when it is more than TOLERANCE, or when a label changes whose golden score leads by more
    than TOLERANCE (a lead of less is a tie): this node would not compute what the trainer computed.
    """
    golden, tolerance = detector.bundle.golden, TOLERANCE[detector.precision]
    where = f"bundle {detector.bundle.version}, {detector.precision}"
    worst, moved = 0.0, 0
    for b in range(golden.n_windows):
        u = {name: detector.embed(name, x_BCN[b]) for name, x_BCN in golden.windows.items()}
        for name, want_BY in golden.scores.items():
            got_Y = detector.classify(u if name == ALL else {name: u[name]})
            worst = max(worst, float(np.abs(got_Y - want_BY[b]).max()))
            second, first = np.sort(want_BY[b])[-2:]
            moved += got_Y.argmax() != want_BY[b].argmax() and first - second > tolerance
    if worst > tolerance:
        raise BundleError(
            f"scores differ from the golden ones by {worst:.2g}, at most {tolerance:g} is taken",
            reason="golden",
            where=where,
        )
    if moved:
        raise BundleError(f"{moved} golden windows get another label", reason="golden", where=where)
    return worst
