"""What a detection costs on one core: one window of every modality through encoders and head, batch 1, one thread.

Four ways in turn in one run, medians: the reference's layout (two-sided spectrum, padded grid) in eager PyTorch; that
same graph, exported as it is, in ONNX Runtime; our graph (aligner/serving_graph.py) in fp32 and in int8. The models are
trained shortly on the SYNTHETIC scene (benchmarks/detect_models.py), kept in --out, and used again. Macro-F1 is on
windows that were not trained on. `agreement`: our graphs against our own model in eager PyTorch. `start_s`: from the
start of a process to its first score, and `rss_mb` its peak memory (benchmarks/detect_start.py).
On a loaded machine the ratios of `cpu_ms` are the steadier ones. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from aligner.config import TrainConfig
from aligner.export import encoder_file, export_int8, export_model, int8_file
from aligner.training_run import golden_vectors
from aligner.trainset import TrainSet
from benchmarks import detect_models as models
from benchmarks.rig import machine, say
from infomae_stream.bundle import generate_keys, save_keys, write_bundle
from infomae_stream.bundle_manifest import GOLDEN

ROOT = Path(__file__).resolve().parents[1]
FAR_FUTURE_NS = 4_000_000_000 * 1_000_000_000
WARM_UP = 5
Logits = Callable[[dict[str, torch.Tensor]], NDArray[np.float32]]


@dataclass(frozen=True)
class Way:
    """One way to a window's logits: `run` takes inputs by modality, batch 1."""

    model: models.Trained
    run: Logits


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_runtime(graphs: dict[str, Path], head: Path) -> Logits:
    sessions = {name: session(path) for name, path in graphs.items()}
    names = {name: s.get_inputs()[0].name for name, s in sessions.items()}
    last = session(head)
    name_of_u = last.get_inputs()[0].name

    def run(x: dict[str, torch.Tensor]) -> NDArray[np.float32]:
        u = [s.run(None, {names[name]: x[name].numpy()})[0] for name, s in sessions.items()]
        logits: NDArray[np.float32] = last.run(None, {name_of_u: np.mean(u, axis=0)})[0]
        return logits

    return run


def eager(model: models.Trained) -> Logits:
    def run(x: dict[str, torch.Tensor]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(models.logits(model, x).numpy())

    return run


def exported_as_it_is(model: models.Trained, x: dict[str, torch.Tensor], folder: Path) -> Logits:
    """torch.onnx of each part and the head: what one gets without aligner/serving_graph.py."""
    paths = {name: folder / f"plain_{name}.onnx" for name in [*model.parts, "head"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated
        for name, part in model.parts.items():
            torch.onnx.export(part, (x[name][:1],), str(paths[name]), opset_version=17, dynamo=False)
        u_1D = torch.zeros(1, model.head.in_features)
        torch.onnx.export(model.head, (u_1D,), str(paths["head"]), opset_version=17, dynamo=False)
    return in_runtime({name: paths[name] for name in model.parts}, paths["head"])


def rows(x: dict[str, torch.Tensor], b: int) -> dict[str, torch.Tensor]:
    return {name: x_BKTF[b : b + 1] for name, x_BKTF in x.items()}


def timed(
    ways: dict[str, Way], inputs: dict[str, dict[str, torch.Tensor]], repeats: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each way, by the clock and of this thread, all ways in turn on the same windows."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    thread: dict[str, list[float]] = {name: [] for name in ways}
    count = len(next(iter(next(iter(inputs.values())).values())))
    for repeat in range(-WARM_UP, repeats):
        for name, way in ways.items():
            x = rows(inputs[name], repeat % count)
            began, began_cpu = time.perf_counter(), time.thread_time()
            way.run(x)
            if repeat >= 0:
                clock[name].append(1000 * (time.perf_counter() - began))
                thread[name].append(1000 * (time.thread_time() - began_cpu))
    return {
        "wall_ms": {name: round(statistics.median(values), 3) for name, values in clock.items()},
        "cpu_ms": {name: round(statistics.median(values), 3) for name, values in thread.items()},
    }


def every_window(way: Way, x: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    count = len(next(iter(x.values())))
    return np.concatenate([way.run(rows(x, b)) for b in range(count)])


def write_start_bundle(model: models.Ours, data: models.Labelled, graphs: dict[str, Path], folder: Path) -> list[str]:
    """A signed bundle of the fp32 and int8 graphs; the command that serves its first score."""
    config, files = model.config, {path.name: path.read_bytes() for path in graphs.values()}
    files |= {int8_file(name): (folder / int8_file(name)).read_bytes() for name in model.front_ends}
    files[GOLDEN] = golden_vectors(model, TrainSet(data.windows, {}, model.classes)).dump()
    contracts = {
        name: {
            "kind": name,
            "rate_hz": windows.rate_hz,
            "channels": [f"c{c}" for c in range(windows.x_BCN.shape[1])],
            "units": ["1"] * windows.x_BCN.shape[1],
            "window_s": config.front_end.window_s,
            "hop_s": 0.5,
            "min_coverage": 0.95,
            "max_gap_s": 0.2,
            "front_end": model.front_ends[name].to_dict(),
            "encoder": encoder_file(name),
            "encoder_int8": int8_file(name),
            "dim": config.align.shared_width,
        }
        for name, windows in data.windows.items()
    }
    fields = {
        "version": 1,
        "created_ns": 1,
        "expires_ns": FAR_FUTURE_NS,
        "classes": list(model.classes),
        "modalities": contracts,
        "lineage": {"made_by": "benchmarks/detect.py"},
        "gates": {},
    }
    private, _ = generate_keys()
    for key in folder.glob("release.p*"):
        key.unlink()
    _, public = save_keys(folder, private)
    info = write_bundle(folder / "bundle.zip", fields, files, private)
    say(f"bundle: {info.size / 1e6:.1f} MB")
    return [sys.executable, str(ROOT / "benchmarks/detect_start.py"), str(info.path), str(public)]


def measure_start(command: list[str], repeats: int) -> dict[str, Any]:
    """Median seconds from the start of the process to the line that it prints, and what that line says last."""
    taken, told = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            taken.append(time.perf_counter() - began)
        told.append(json.loads(line))
    return {
        "start_s": statistics.median(taken),
        "start_cpu_s": statistics.median(t["cpu_s"] for t in told),
        "rss_mb": max(t["rss_mb"] for t in told),
        "start_precision": told[-1]["precision"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("mod", "har"), default="mod")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--windows", type=int, default=600, help="to train on")
    parser.add_argument("--held-out", type=int, default=400, help="to score")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of the training; everything timed takes one")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "detect")
    args = parser.parse_args()
    folder = args.out / args.preset
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{machine()}; weights trained on the SYNTHETIC scene, {args.windows} windows, {args.epochs} epochs")
    torch.set_num_threads(args.threads)
    config = TrainConfig.model_validate({"preset": args.preset})
    data, held_out = models.draw(args.preset, args.windows, 0), models.draw(args.preset, args.held_out, 1)
    reference = models.trained("reference", data, config, args.epochs, folder)
    ours = models.trained("ours", data, config, args.epochs, folder)
    assert isinstance(ours, models.Ours)
    torch.set_num_threads(1)
    graphs = export_model(ours, folder)
    int8 = export_int8(graphs)
    head, fp32 = graphs["head"], {name: graphs[name] for name in ours.front_ends}
    x_reference, x_ours = models.all_inputs(reference, held_out), models.all_inputs(ours, held_out)
    ways = {
        "reference_eager": Way(reference, eager(reference)),
        "ort_same_graph": Way(reference, exported_as_it_is(reference, x_reference, folder)),
        "ours": Way(ours, in_runtime(fp32, head)),
        "ours_int8": Way(ours, in_runtime(int8, head)),
    }
    inputs = {name: x_reference if way.model is reference else x_ours for name, way in ways.items()}
    found = timed(ways, inputs, args.repeats)
    made = {name: every_window(way, inputs[name]) for name, way in ways.items() if name != "ort_same_graph"}
    eager_ours = every_window(Way(ours, eager(ours)), x_ours)
    start = measure_start(write_start_bundle(ours, held_out, graphs, folder), args.starts)
    wall, cpu = found["wall_ms"], found["cpu_ms"]
    result = {
        "preset": args.preset,
        "synthetic": True,
        **{f"{name}_ms": wall[name] for name in ways},
        "ratio": wall["reference_eager"] / wall["ours"],
        "ratio_int8": wall["reference_eager"] / wall["ours_int8"],
        "cpu_ms": cpu,
        "ratio_cpu": cpu["reference_eager"] / cpu["ours"],
        "ratio_int8_cpu": cpu["reference_eager"] / cpu["ours_int8"],
        "macro_f1_reference": models.score(made["reference_eager"], held_out),
        "macro_f1_ours": models.score(made["ours"], held_out),
        "macro_f1_int8": models.score(made["ours_int8"], held_out),
        **start,
        "agreement": {
            "fp32_largest_logit_difference": float(np.abs(made["ours"] - eager_ours).max()),
            "int8_largest_logit_difference": float(np.abs(made["ours_int8"] - eager_ours).max()),
            "int8_same_label": float((made["ours_int8"].argmax(1) == eager_ours.argmax(1)).mean()),
        },
        "windows_trained": args.windows,
        "windows_scored": args.held_out,
    }
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
