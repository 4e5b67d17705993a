"""A signed bundle of the product's own encoders at their default size, fp32 and int8, that has learned nothing.

    .venv/bin/python scripts/untrained_bundle.py FOLDER     # bundle.zip and release.pub

For trials of nodes: the graphs, the sizes and the golden vectors are those of a trained one, only the numbers differ.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from aligner.config import FrontEndConfig, TrainConfig
from aligner.export import encoder_file, export_int8, export_model, int8_file
from aligner.model import Model
from aligner.train import front_end_for
from aligner.training_run import golden_vectors
from aligner.trainset import ModalityWindows, TrainSet
from infomae_stream.bundle import generate_keys, save_keys, write_bundle
from infomae_stream.bundle_manifest import GOLDEN, HEAD

SEED = 0
WINDOWS, RATE_HZ, WINDOW_S = 20, 100.0, 2.0
MODALITIES = ("phone_imu", "watch_imu")
CHANNELS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
UNITS = ("m/s2",) * 3 + ("rad/s",) * 3
FAR_FUTURE_NS = 4_000_000_000 * 1_000_000_000


def main(folder: Path) -> None:
    rng = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    rows = np.arange(WINDOWS)
    data, front_ends = {}, {}
    for name in MODALITIES:
        x_BCN = rng.normal(0, 1, (WINDOWS, len(CHANNELS), round(RATE_HZ * WINDOW_S))).astype(np.float32)
        data[name] = ModalityWindows(name, RATE_HZ, x_BCN, rows, np.full(WINDOWS, "s1"), rows * 0, rows % 2)
        front_ends[name] = front_end_for(data[name], FrontEndConfig())
    config = TrainConfig()
    model = Model(front_ends, ("rest", "walk"), config).eval()
    with tempfile.TemporaryDirectory() as scratch:
        graphs = export_model(model, Path(scratch))
        written = [*graphs.values(), *export_int8(graphs).values()]
        files = {path.name: path.read_bytes() for path in written}
    assert HEAD in files
    files[GOLDEN] = golden_vectors(model, TrainSet(data, {}, model.classes)).dump()
    contracts = {
        name: {
            "kind": "imu",
            "rate_hz": RATE_HZ,
            "channels": list(CHANNELS),
            "units": list(UNITS),
            "window_s": WINDOW_S,
            "hop_s": 0.5,
            "min_coverage": 0.95,
            "max_gap_s": 0.2,
            "front_end": front_ends[name].to_dict(),
            "encoder": encoder_file(name),
            "encoder_int8": int8_file(name),
            "dim": config.align.shared_width,
        }
        for name in MODALITIES
    }
    fields = {
        "version": 1,
        "created_ns": 1,
        "expires_ns": FAR_FUTURE_NS,
        "classes": list(model.classes),
        "modalities": contracts,
        "lineage": {"made_by": "scripts/untrained_bundle.py"},
        "gates": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    private, _ = generate_keys()
    _, public = save_keys(folder, private)
    print(write_bundle(folder / "bundle.zip", fields, files, private), public)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
