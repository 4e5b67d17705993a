"""Export to ONNX: one static batch-1 graph a modality and one head, each checked against torch.

Graphs: `x_1KTF` -> `u_1D` (the shared part, deterministic); `u_1D` -> `logits_1Y`, where u is the mean of the u of
whatever modalities are present.
"""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from aligner.model import Model
from infomae_stream.errors import TrainingError

TOLERANCE = 1e-4
OPSET = 17
HEAD_FILE = "head.onnx"


def encoder_file(modality: str) -> str:
    """Name of a modality's graph inside a bundle."""
    return f"encoder_{modality}.onnx"


def export_model(model: Model, folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """Write the graphs into `folder` (which exists); return path by modality, and by "head".

    Raises TrainingError when a graph disagrees with torch by more than 1e-4 anywhere.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    written = {}
    for name in model.front_ends:
        example = torch.randn(1, *model.front_ends[name].shape_KTF, generator=generator)
        written[name] = folder / encoder_file(name)
        _export(model.part(name), example, "x_1KTF", "u_1D", written[name], generator)
    written["head"] = folder / HEAD_FILE
    example = torch.randn(1, model.head.in_features, generator=generator)
    _export(model.head, example, "u_1D", "logits_1Y", written["head"], generator)
    return written


def disagreement(module: nn.Module, path: Path, inputs: list[torch.Tensor]) -> float:
    """Largest absolute difference between torch and the runtime over `inputs` (each a batch of one); NaN if any is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with torch.no_grad():
        differences = [np.abs(session.run(None, {name: x.numpy()})[0] - module(x).numpy()).max() for x in inputs]
    return float(np.max(differences))


def _export(
    module: nn.Module, example: torch.Tensor, name_in: str, name_out: str, path: Path, generator: torch.Generator
) -> None:
    module.eval()
    with warnings.catch_warnings():
        # The tracing exporter is deprecated in favour of one that needs onnxscript, which the hub does not carry.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=[name_in],
            output_names=[name_out],
            opset_version=OPSET,
            dynamo=False,
        )
    inputs = [torch.randn(example.shape, generator=generator) for _ in range(8)]
    worst = disagreement(module, path, inputs)
    if not worst <= TOLERANCE:
        raise TrainingError(f"the graph differs from torch by {worst:.2e}", where=path.name, fix="report the model")
