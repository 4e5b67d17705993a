"""A detector learns from a geophone's labels and runs on a microphone alone, through a real bundle.

Geophone and microphone share nothing but the moments at which both heard the same source (the pairs of the synthetic
scene); no acoustic window has a label.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aligner.config import TrainConfig
from aligner.export import encoder_file, export_int8, export_model, int8_file
from aligner.model import Model
from aligner.subsets import score_subsets
from aligner.train import align_and_fit, pretrain_all
from aligner.training_run import golden_vectors
from aligner.trainset import UNKNOWN_LABEL, ModalityWindows, TrainSet
from inference.detector import Detector
from inference.precision import prove
from inference.runtimes import make_runtime
from infomae_stream.bundle import Bundle, generate_keys, open_bundle, write_bundle
from infomae_stream.scene import draw_scene_windows
from infomae_stream.scene_signals import SENSORS
from infomae_stream.types import ClockQuality, StreamId, StreamSpec, Window

CLASSES = ("slow", "middling", "brisk", "fast")  # the source's fundamental, which every sensor hears
KINDS = ("acoustic", "seismic")
CHANCE = 1 / len(CLASSES)
CONFIG = TrainConfig.model_validate(
    {
        "threads": 1,
        "pretrain": {"epochs": 1},
        "front_end": {"max_hz": 45.0},
        "encoder": {"width": 16, "depths": [1, 1], "heads": 2, "embedding_width": 32},
        "align": {"steps": 10, "critic_warm_up": 2, "shared_width": 16, "private_width": 8, "view_copies": 2},
    }
)
RUNTIME = make_runtime("onnx", threads=1)


def scene(n: int, seed: int, site: str, labelled: tuple[str, ...]) -> TrainSet:
    """`n` instants of both sensors; labels on those of `labelled` only. Every row is a pair."""
    drawn = draw_scene_windows(n, seed, kinds=KINDS, snr_db=(10.0, 20.0), dropout=0.0)
    rows, label_B = np.arange(n), drawn.r_B * len(CLASSES) // 8
    unknown_B = np.full(n, UNKNOWN_LABEL)
    windows = {
        kind: ModalityWindows(
            kind,
            SENSORS[kind].rate_hz,
            drawn.x[kind],
            rows * 2_000_000_000,
            np.full(n, site),
            rows // 8,
            label_B if kind in labelled else unknown_B,
        )
        for kind in KINDS
    }
    return TrainSet(windows, {KINDS: np.stack([rows, rows], axis=1)}, CLASSES)


@dataclass
class Trained:
    model: Model
    unaligned: Model  # the same training with pairs of moments that have nothing to do with each other
    held_out: TrainSet
    bundle: Bundle


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("swap")
    train, held_out = scene(96, 0, "north", ("seismic",)), scene(64, 1, "south", KINDS)
    assert train.labelled() == ["seismic"]
    pretrained = pretrain_all(train, CONFIG)
    model, _ = align_and_fit(pretrained, train, CONFIG)
    shuffled = np.stack([np.arange(96), np.random.default_rng(0).permutation(96)], axis=1)
    unaligned, _ = align_and_fit(pretrained, TrainSet(train.modalities, {KINDS: shuffled}, CLASSES), CONFIG)
    return Trained(model, unaligned, held_out, released(model, held_out, folder))


def released(model: Model, held_out: TrainSet, folder: Path) -> Bundle:
    """As the hub writes it: fp32 and int8, golden vectors of held-out windows, signed."""
    graphs = export_model(model, folder)
    int8 = export_int8(graphs)
    modalities = {
        kind: {
            "kind": kind,
            "rate_hz": SENSORS[kind].rate_hz,
            "channels": list(SENSORS[kind].channels),
            "units": list(SENSORS[kind].units),
            "window_s": 2.0,
            "hop_s": 1.0,
            "min_coverage": 0.9,
            "max_gap_s": 0.2,
            "front_end": model.front_ends[kind].to_dict(),
            "encoder": encoder_file(kind),
            "encoder_int8": int8_file(kind),
            "dim": CONFIG.align.shared_width,
        }
        for kind in KINDS
    }
    fields = {
        "version": 1,
        "created_ns": 1,
        "expires_ns": 4 * 10**18,
        "classes": list(CLASSES),
        "modalities": modalities,
        "subsets": score_subsets(model, held_out),
    }
    files = {path.name: path.read_bytes() for path in (*graphs.values(), *int8.values())}
    files["golden.npz"] = golden_vectors(model, held_out).dump()
    private, public = generate_keys()
    info = write_bundle(folder / "bundle.zip", fields, files, private)
    return open_bundle(info.path, [public], now_ns=1, min_version=0)


def detected(detector: Detector, held_out: TrainSet, kinds: tuple[str, ...]) -> NDArray[np.int64]:
    """The class of each held-out instant for a node that has only the sensors `kinds`."""
    found = []
    for row in range(len(held_out.modalities[KINDS[0]])):
        windows = [window(kind, held_out.modalities[kind].x_BCN[row]) for kind in kinds]
        look = detector.look(windows)
        assert look.seen is not None and look.seen.modalities == kinds and not look.dropped
        assert look.seen.missing == tuple(kind for kind in KINDS if kind not in kinds)
        found.append(int(np.argmax(list(look.seen.scores.values()))))
    return np.array(found)


def window(kind: str, x_CN: NDArray[np.float32]) -> Window:
    sensor = SENSORS[kind]
    spec = StreamSpec(
        StreamId("south", "south-1", kind),
        kind,
        sensor.rate_hz,
        sensor.channels,
        sensor.units,
        sensor.sensitivity,
        kind,
    )
    return Window(spec, 0, x_CN, 1.0, ClockQuality("test"))


def right(predicted_B: NDArray[np.int64], held_out: TrainSet) -> float:
    return float((predicted_B == held_out.modalities["acoustic"].label_B).mean())


def test_a_microphone_runs_the_shared_part_that_a_geophone_taught(trained: Trained) -> None:
    detector = prove(trained.bundle, RUNTIME, "fp32").detector
    accuracy = {
        kinds: right(detected(detector, trained.held_out, kinds), trained.held_out)
        for kinds in (("acoustic",), ("seismic",), KINDS)
    }
    assert accuracy["acoustic",] > 3 * CHANCE, accuracy
    assert accuracy["seismic",] > 3 * CHANCE and accuracy[KINDS] > 3 * CHANCE, accuracy


def test_it_is_the_pairs_that_carry_the_labels_over(trained: Trained) -> None:
    acoustic = trained.held_out.modalities["acoustic"]
    predicted_B = trained.unaligned.scores({"acoustic": acoustic.x_BCN}).argmax(axis=1).astype(np.int64)
    assert right(predicted_B, trained.held_out) < 2 * CHANCE, Counter(predicted_B.tolist())


def test_the_manifest_says_what_each_sensor_alone_is_worth(trained: Trained) -> None:
    worth = {subset.modalities: subset for subset in trained.bundle.manifest.subsets}
    assert set(worth) == {KINDS, ("acoustic",), ("seismic",)}
    assert {subset.windows for subset in worth.values()} == {64}
    assert worth["acoustic",].macro_f1 > 3 * CHANCE


def test_int8_of_the_same_detector_says_the_same(trained: Trained) -> None:
    proven = prove(trained.bundle, RUNTIME, "auto")
    assert proven.detector.precision == "int8", proven.int8_refused
    fp32 = detected(prove(trained.bundle, RUNTIME, "fp32").detector, trained.held_out, ("acoustic",))
    int8 = detected(proven.detector, trained.held_out, ("acoustic",))
    assert (fp32 == int8).mean() > 0.9
