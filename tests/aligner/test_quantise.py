"""The int8 twin of a graph: near the fp32 one, smaller, and refused where there is nothing to quantise."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from aligner.quantise import quantise
from infomae_stream.errors import TrainingError
from tests.aligner.laws import generator


def exported(module: nn.Module, example: torch.Tensor, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), str(path), opset_version=17, dynamo=False)
    return path


def run(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_every_channel_is_near_fp32(tmp_path: Path) -> None:
    # Channels of very different size, which one scale for all would flatten, and sums that saturate 16 bits.
    linear = nn.Linear(128, 64, bias=False)
    with torch.no_grad():
        linear.weight.fill_(0.05)
        linear.weight[:32] *= 1e-3
    x = torch.rand(1, 128, generator=generator()) + 3.0
    fp32 = exported(linear, x, tmp_path / "fp32.onnx")
    quantise(fp32, tmp_path / "int8.onnx")
    want, got = run(fp32, x), run(tmp_path / "int8.onnx", x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0.01)
    assert (got != want).any()


def test_int8_is_smaller_and_keeps_no_product_in_fp32(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 32))
    fp32 = exported(module, torch.rand(1, 128), tmp_path / "fp32.onnx")
    quantise(fp32, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * fp32.stat().st_size
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert nodes.count("MatMulInteger") == 2
    assert "MatMul" not in nodes and "Gemm" not in nodes


class Softmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(1, 2)).softmax(dim=-1)


def test_a_graph_without_constant_products_is_refused(tmp_path: Path) -> None:
    path = exported(Softmax(), torch.rand(1, 3, 4), tmp_path / "soft.onnx")
    with pytest.raises(TrainingError, match="no matrix product"):
        quantise(path, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(TrainingError, match=r"text\.onnx"):
        quantise(tmp_path / "text.onnx", tmp_path / "int8.onnx")
    with pytest.raises(TrainingError, match=r"missing\.onnx"):
        quantise(tmp_path / "missing.onnx", tmp_path / "int8.onnx")
