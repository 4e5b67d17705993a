"""Our Swin blocks: equal to timm's on equal weights, indifferent to padding, static in shape."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aligner.config import EncoderConfig
from aligner.encoders.swin import SwinEncoder
from aligner.masked_decoder import MirroredDecoder
from aligner.swin_block import PatchMerging, SwinBlock
from tests.aligner.laws import generator


@pytest.fixture(scope="module")
def timm_swin() -> Iterator[Any]:
    """timm imports torchvision, whose CPU import wants the schemas of operators that only its CUDA build declares."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("timm.models.swin_transformer", reason="timm is an extra of the tests")
    del library


@pytest.mark.parametrize(
    ("grid", "window", "shifted"),
    [((8, 4), (4, 4), False), ((8, 4), (4, 4), True), ((9, 10), (3, 5), True), ((6, 4), (2, 2), True)],
)
def test_block_equals_timm(timm_swin: Any, grid: tuple[int, int], window: tuple[int, int], shifted: bool) -> None:
    torch.manual_seed(0)
    ours = SwinBlock(grid, 16, 4, window, shifted=shifted).eval()
    shift = window[0] // 2 if shifted else 0
    theirs = timm_swin.SwinTransformerBlock(16, grid, num_heads=4, window_size=window, shift_size=shift).eval()
    if window[0] != window[1] and shifted:
        theirs = timm_swin.SwinTransformerBlock(
            16, grid, num_heads=4, window_size=window, shift_size=(window[0] // 2, window[1] // 2)
        ).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all("index" in name or "mask" in name for name in missing)
    x = torch.randn(3, *grid, 16, generator=generator())
    torch.testing.assert_close(ours(x.flatten(1, 2)).view_as(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_merging_equals_timm(timm_swin: Any) -> None:
    ours = PatchMerging((9, 4), 8).eval()
    theirs = timm_swin.PatchMerging(8).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 4, 8, generator=generator())
    torch.testing.assert_close(ours(x.flatten(1, 2)), theirs(x).flatten(1, 2))


def test_windows_see_their_own_tokens_only_until_shifted() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8)
    x.requires_grad_()
    block = SwinBlock((8, 1), 8, 2, (4, 1), shifted=False).eval()
    block(x)[0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().sum(dim=1) > 0).tolist() == [True] * 4 + [False] * 4
    x.grad = None
    SwinBlock((8, 1), 8, 2, (4, 1), shifted=True).eval()(x)[0, 3].sum().backward()
    assert (x.grad[0].abs().sum(dim=1) > 0).tolist() == [False] * 2 + [True] * 4 + [False] * 2


def test_padding_is_never_attended_to() -> None:
    torch.manual_seed(0)
    block = SwinBlock((5, 3), 8, 2, (4, 3), shifted=False).eval()
    torch.nn.init.normal_(block.attn.qkv.bias, std=5.0)
    x = torch.randn(1, 15, 8)
    lone = SwinBlock((1, 3), 8, 2, (1, 3), shifted=False).eval()
    state = block.state_dict()
    table = state["attn.relative_position_bias_table"].view(7, 5, 2)[3].reshape(5, 2)
    lone.load_state_dict({**state, "attn.relative_position_bias_table": table})
    torch.testing.assert_close(block(x)[:, 12:], lone(x[:, 12:]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(20, 9, 8), (12, 10, 21), (2, 10, 20), (1, 3, 2)])
@pytest.mark.parametrize("skip", [True, False])
def test_encoder_takes_any_spectrogram(shape: tuple[int, int, int], skip: bool) -> None:
    encoder = SwinEncoder(shape, EncoderConfig(width=16, heads=2, skip=skip)).eval()
    x = torch.randn(2, *shape)
    assert encoder(x).shape == (2, encoder.embedding_width)
    assert MirroredDecoder(encoder, 2).eval()(encoder.tokens(x)).shape == x.shape


@pytest.mark.parametrize("skip", [True, False])
def test_hidden_patches_do_not_leak_into_the_embedding(skip: bool) -> None:
    encoder = SwinEncoder((4, 9, 8), EncoderConfig(width=16, heads=2, skip=skip)).eval()
    x = torch.randn(1, 4, 9, 8)
    mask = torch.zeros(1, encoder.grid[0] * encoder.grid[1], dtype=torch.bool)
    mask[0, : encoder.grid[1]] = True
    changed = x.clone()
    changed[:, :, 0] += 100.0
    torch.testing.assert_close(encoder(changed, mask), encoder(x, mask))
    assert not torch.allclose(encoder(changed), encoder(x))


def test_the_small_preset_is_small() -> None:
    encoder = SwinEncoder((10, 9, 8), EncoderConfig())
    assert 0.2e6 < sum(p.numel() for p in encoder.parameters()) < 0.4e6
