"""What a trigger before the model costs in recall and saves in work, on the SYNTHETIC scene: a vehicle every 30 s.

A window belongs to an event when it overlaps the time within `width_s` of a vehicle's closest point. For each trigger
with its default settings, each sensor and both, and each signal-to-noise ratio: the share of events of which at least
one window is looked at, the share of event windows that are, and the share of all windows that are not. Then what a
trigger takes a window, and what the own encoders and head take (untrained, presets `small` and `mod`, batch 1,
one thread). No real recording with labelled events is at hand for this. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray

from aligner.config import TrainConfig
from aligner.export import encoder_file, export_model
from aligner.model import Model
from aligner.train import front_end_for
from aligner.trainset import ModalityWindows
from inference.runtimes import make_runtime
from inference.triggers import TRIGGERS, check_options
from infomae_stream.bundle_manifest import HEAD
from infomae_stream.clock import NS_PER_S
from infomae_stream.scene import ContinuousScene, SceneNode

NODE = SceneNode("road", "n1")
START_NS = 1_700_000_000 * NS_PER_S
WINDOW_S, HOP_S, PERIOD_S, WIDTH_S = 2.0, 0.5, 30.0, 2.0
WARM_UP_S = 60.0  # while the triggers learn the noise, they let everything through; not counted
Signals = dict[str, tuple[float, NDArray[np.float32]]]


def signals(scene: ContinuousScene, seconds: int) -> Signals:
    """Sensor -> rate and (C, N) in physical units."""
    found = {}
    for spec in scene.streams():
        rate = round(spec.rate_hz)
        parts = [scene.read(spec.id, START_NS + s * NS_PER_S, rate) for s in range(seconds)]
        gain = np.asarray(spec.sensitivity)[:, None]
        found[spec.id.stream] = spec.rate_hz, (np.concatenate(parts, axis=1) / gain).astype(np.float32)
    return found


def awake(name: str, rate_hz: float, x_CN: NDArray[np.float32], starts_s: NDArray[Any]) -> tuple[list[bool], float]:
    """Of each window whether the trigger lets it through, and milliseconds a window."""
    options, cls = check_options({"type": name}, where="benchmark", prefix=())
    trigger, n = cls(options, rate_hz), round(WINDOW_S * rate_hz)
    found, began = [], time.perf_counter()
    for start_s in starts_s.tolist():
        first = round(start_s * rate_hz)
        found.append(trigger.awake(START_NS + round(start_s * NS_PER_S), x_CN[:, first : first + n]))
    return found, 1000 * (time.perf_counter() - began) / len(found)


def judge(passed_W: NDArray[np.bool_], starts_s: NDArray[Any], closest_s: NDArray[Any]) -> dict[str, float]:
    overlap_EW = np.abs(starts_s[None, :] + WINDOW_S / 2 - closest_s[:, None]) < WINDOW_S / 2 + WIDTH_S
    counted_W = starts_s >= WARM_UP_S
    whole_E = (overlap_EW & ~counted_W).sum(axis=1) == 0
    kept = [(passed_W & overlap_W).any() for overlap_W in overlap_EW[whole_E]]
    event_W = overlap_EW.any(axis=0) & counted_W
    return {
        "events": int(whole_E.sum()),
        "events_kept": round(float(np.mean(kept)), 4),
        "event_windows_kept": round(float(passed_W[event_W].mean()), 4),
        "windows_not_run": round(float((~passed_W[counted_W]).mean()), 4),
        "windows_without_event": round(float((~event_W[counted_W]).mean()), 4),
    }


def model_ms(found: Signals, config: TrainConfig, repeats: int) -> float:
    """Front ends, encoders and head, one window of every sensor: median of `repeats`."""
    torch.manual_seed(0)
    windows, front_ends = {}, {}
    for name, (rate_hz, x_CN) in found.items():
        n = round(WINDOW_S * rate_hz)
        x_BCN = np.stack([x_CN[:, k * n : (k + 1) * n] for k in range(8)])
        rows = np.arange(8)
        windows[name] = x_BCN[:1]
        whole = ModalityWindows(name, rate_hz, x_BCN, rows, np.full(8, "s1"), rows * 0, rows % 2)
        front_ends[name] = front_end_for(whole, config.front_end)
    model = Model(front_ends, ("quiet", "vehicle"), config).eval()
    runtime = make_runtime("onnx", threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        files = {path.name: path.read_bytes() for path in export_model(model, Path(scratch)).values()}
    shapes = {name: (1, *front_end.shape_KTF) for name, front_end in front_ends.items()}
    dim = config.align.shared_width
    graphs = {
        name: runtime.load(files[encoder_file(name)], input_shape=shape, output_shape=(1, dim), where=name)
        for name, shape in shapes.items()
    }
    head = runtime.load(files[HEAD], input_shape=(1, dim), output_shape=(1, 2), where=HEAD)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        u_1D = np.mean([graphs[name](front_ends[name](x_1CN)) for name, x_1CN in windows.items()], axis=0)
        head(u_1D.astype(np.float32))
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--snr-db", type=float, nargs="+", default=[15.0, 5.0, 0.0])
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    starts_s = np.arange(0, args.seconds - WINDOW_S + 1e-9, HOP_S)
    rows: dict[str, dict[str, float]] = {}
    took_ms: dict[str, list[float]] = {}
    found: Signals = {}
    for snr_db in args.snr_db:
        scene = ContinuousScene(0, [NODE], period_s=PERIOD_S, width_s=WIDTH_S, snr_db=snr_db)
        found = signals(scene, args.seconds)
        passes = scene.passes(NODE.site, START_NS, START_NS + args.seconds * NS_PER_S)
        closest_s = np.array([(p.closest_ns(NODE) - START_NS) / NS_PER_S for p in passes])
        for name in sorted(TRIGGERS):
            passed: dict[str, NDArray[np.bool_]] = {}
            for sensor, (rate_hz, x_CN) in found.items():
                some, ms = awake(name, rate_hz, x_CN, starts_s)
                passed[sensor] = np.array(some)
                took_ms.setdefault(f"{name} {sensor}", []).append(ms)
            passed["both"] = np.logical_or.reduce(list(passed.values()))
            for sensor, some_W in passed.items():
                key = f"{name} {sensor} {snr_db:g} dB"
                rows[key] = judge(some_W, starts_s, closest_s)
                print(key, rows[key], flush=True)
    ms = {name: round(statistics.median(values), 4) for name, values in took_ms.items()}
    models = {}
    for preset in ("small", "mod"):
        models[preset] = round(model_ms(found, TrainConfig.model_validate({"preset": preset}), args.repeats), 3)
    print(json.dumps({"synthetic": True, "rows": rows, "trigger_ms": ms, "model_ms": models}))


if __name__ == "__main__":
    main()
