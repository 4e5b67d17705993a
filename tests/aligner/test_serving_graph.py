"""The graph that nodes run is the trained model's function, on any grid; and its int8 twin is near."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from aligner.config import EncoderConfig, TrainConfig
from aligner.model import ModalityModel
from aligner.quantise import quantise
from aligner.serving_graph import DENSE_TOKENS, attention_groups, write_encoder
from aligner.swin_block import SwinBlock
from infomae_stream.errors import TrainingError
from infomae_stream.onnx_weights import check_weights
from tests.aligner.laws import generator, small_config

# spectrogram, patch, window, depths, skip: what the grid then is stands behind.
LAYOUTS = {
    "columns, shifted, padded both ways": ((2, 10, 20), (1, 1), (3, 3), (2, 2), False),  # 10 x 20, 5 x 10
    "dense, ragged patches, odd grid": ((3, 7, 13), (2, 2), (3, 4), (2, 1), True),  # 4 x 7, 2 x 4
    "windows as large as the grid": ((2, 3, 8), (1, 2), (3, 4), (1, 2), True),  # 3 x 4, 2 x 2
    "tall": ((1, 24, 6), (1, 1), (4, 3), (2,), False),  # 24 x 6
    "three stages, patches of 1 x 40": ((2, 10, 800), (1, 40), (3, 3), (2, 2, 2), False),  # 10 x 20, 5 x 10, 3 x 5
}


def trained(layout: str, steps: int = 8) -> tuple[ModalityModel, torch.Tensor]:
    """A model whose encoder was trained a little, so that no weight or bias is what it was made with; its inputs."""
    shape_KTF, patch, window, depths, skip = LAYOUTS[layout]
    encoder = EncoderConfig(
        patch=patch, window=window, width=16, depths=depths, heads=2, skip=skip, embedding_width=24, drop_path=0.0
    )
    config = TrainConfig(encoder=encoder, align=small_config().align)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    part = ModalityModel(shape_KTF, config)
    x_BKTF = torch.randn(6, *shape_KTF, generator=generator())
    # Not fitted: the principal directions of six windows would hide most of what the encoder says.
    part.compress.weight.normal_(std=part.encoder.embedding_width**-0.5)
    part.compress.mean.normal_()
    target_BD = torch.randn(6, config.align.shared_width, generator=generator())
    optimiser = torch.optim.AdamW(part.parameters(), lr=1e-2)
    part.train()
    for _ in range(steps):
        optimiser.zero_grad()
        (part(x_BKTF) - target_BD).square().mean().backward()
        optimiser.step()
    return part.eval(), x_BKTF


def run(path: Path, x_BKTF: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["u_1D"], {"x_1KTF": row[None].numpy()})[0] for row in x_BKTF])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_graph_equals_the_trained_model(layout: str, tmp_path: Path) -> None:
    part, x_BKTF = trained(layout)
    path = tmp_path / "graph.onnx"
    write_encoder(part, path)
    with torch.no_grad():
        want_BD = part(x_BKTF).numpy()
    assert want_BD.std() > 0.1
    np.testing.assert_allclose(run(path, x_BKTF), want_BD, atol=1e-4, rtol=0)
    onnx.checker.check_model(str(path))
    assert check_weights(path.read_bytes(), "graph") > 10_000


@pytest.mark.parametrize("layout", ["columns, shifted, padded both ways", "dense, ragged patches, odd grid"])
def test_int8_twin_is_near_and_has_no_fp32_weights_left(layout: str, tmp_path: Path) -> None:
    part, x_BKTF = trained(layout)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    write_encoder(part, fp32)
    quantise(fp32, int8)
    want_BD, got_BD = run(fp32, x_BKTF), run(int8, x_BKTF)
    difference = np.abs(got_BD - want_BD)
    assert 0 < difference.mean() < 0.05 * want_BD.std()
    operators = [node.op_type for node in onnx.load(int8).graph.node]
    assert "MatMul" not in operators and "Gelu" not in operators
    assert operators.count("MatMulInteger") == [n.op_type for n in onnx.load(fp32).graph.node].count("MatMul")


def test_the_runtime_fuses_what_pays_and_nothing_else(tmp_path: Path) -> None:
    part, _ = trained("columns, shifted, padded both ways", steps=1)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    write_encoder(part, fp32)
    quantise(fp32, int8)
    ran = {}
    for path in (fp32, int8):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns that what it writes is for this machine
        options.optimized_model_filepath = str(tmp_path / "ran.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        ran[path.stem] = [node.op_type for node in onnx.load(tmp_path / "ran.onnx").graph.node]
    assert "SkipLayerNormalization" not in ran["fp32"] + ran["int8"]  # slower than the sum and the norm it stands for
    assert ran["fp32"].count("MatMul") == 1  # merging has no bias
    assert "MatMulInteger" not in ran["int8"] and "Gemm" not in ran["int8"]


def test_an_encoder_without_a_layout_is_refused(tmp_path: Path) -> None:
    part = ModalityModel((2, 3, 8), small_config())
    part.encoder = torch.nn.Identity()
    with pytest.raises(TrainingError, match="Identity cannot be served"):
        write_encoder(part, tmp_path / "graph.onnx")


@pytest.mark.parametrize("grid", [(10, 20), (5, 10), (9, 13), (3, 2)])
@pytest.mark.parametrize("shifted", [False, True])
def test_groups_hold_every_token_once_and_no_padding(grid: tuple[int, int], shifted: bool) -> None:
    block = SwinBlock(grid, 8, 2, (3, 3), shifted=shifted)
    tokens = grid[0] * grid[1]
    index_GS, bias_GHSS, place_L = attention_groups(grid, block)
    assert (len(index_GS) == 1) == (tokens <= DENSE_TOKENS)
    assert index_GS.view(-1)[place_L].tolist() == list(range(tokens))
    assert bias_GHSS.shape == (len(index_GS), 2, index_GS.shape[1], index_GS.shape[1])
    open_SS = (bias_GHSS[:, 0] > -1.0).sum(dim=2)  # how many tokens each one sees
    unused = torch.ones(index_GS.numel(), dtype=torch.bool)
    unused[place_L] = False
    assert (open_SS.view(-1)[unused] == 0).all()
    assert (open_SS.view(-1)[place_L] >= 1).all() and open_SS.max() <= 9
