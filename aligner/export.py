"""Export to ONNX: one static batch-1 graph a modality and one head, each checked against torch.

Graphs: `x_1KTF` -> `u_1D` (the shared part, deterministic); `u_1D` -> `logits_1Y`, where u is the mean of the u of
whatever modalities are present. Beside each encoder its int8 twin, for nodes that can show that they compute it right.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from aligner.model import Model
from aligner.quantise import quantise
from aligner.serving_graph import write_encoder, write_head
from infomae_stream.errors import TrainingError

TOLERANCE = 1e-4
HEAD_FILE = "head.onnx"


def encoder_file(modality: str) -> str:
    """Name of a modality's graph inside a bundle."""
    return f"encoder_{modality}.onnx"


def int8_file(modality: str) -> str:
    """Name of its int8 twin."""
    return f"encoder_{modality}.int8.onnx"


def export_model(model: Model, folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """Write the graphs into `folder` (which exists); return path by modality, and by "head".

    Raises TrainingError when a graph disagrees with torch by more than 1e-4 anywhere.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    written = {}
    for name, front_end in model.front_ends.items():
        written[name] = folder / encoder_file(name)
        write_encoder(model.part(name), written[name])
        _check(model.part(name), front_end.shape_KTF, written[name], generator)
    written["head"] = folder / HEAD_FILE
    write_head(model.head, written["head"])
    _check(model.head, (model.head.in_features,), written["head"], generator)
    return written


def export_int8(graphs: dict[str, Path]) -> dict[str, Path]:
    """Write the int8 twin of each encoder of `export_model` beside it; return path by modality. The head stays fp32."""
    written = {}
    for name, path in graphs.items():
        if name != "head":
            written[name] = path.with_name(int8_file(name))
            quantise(path, written[name])
    return written


def outputs(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the graph gives for each row of `x`, one by one and on one thread, as a node runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + 1]})[0] for i in range(len(x))])


def disagreement(module: nn.Module, path: Path, inputs: list[torch.Tensor]) -> float:
    """Largest absolute difference between torch and the runtime over `inputs` (each a batch of one); NaN if any is."""
    x = torch.cat(inputs)
    with torch.no_grad():
        want = torch.cat([module(row) for row in inputs]).numpy()
    return float(np.abs(outputs(path, x.numpy()) - want).max())


def _check(module: nn.Module, shape: tuple[int, ...], path: Path, generator: torch.Generator) -> None:
    worst = disagreement(module, path, [torch.randn(1, *shape, generator=generator) for _ in range(8)])
    if not worst <= TOLERANCE:
        raise TrainingError(f"the graph differs from torch by {worst:.2e}", where=path.name, fix="report the model")
