"""The graph that nodes run: the function of a trained SwinEncoder and its shared projection, laid out for one window.

Written node by node, not traced. What makes it cheaper than the traced one: tokens are never padded (attention alone
sees padding, masked); relative position bias and shift mask are one constant; no rolls, and one gather there and back
instead of a partition into windows; tokens stay a matrix, so that a product and its bias are one operator; attention
and GELU are operators of ONNX Runtime (domain com.microsoft, default CPU build on x86 and Arm). Residual sums and
norms stay apart: the runtime's fused one takes three times as long, and would be put in were the tokens not a matrix.
Legend: K channels, T intervals, F bins, L tokens, D width, G groups of S tokens that attend to each other, H heads.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from aligner.encoders.swin import PatchEmbedding, SwinEncoder
from aligner.model import ModalityModel
from aligner.swin_block import PatchMerging, SwinBlock
from infomae_stream.errors import TrainingError

OPSET: Final = 17
IR_VERSION: Final = 8
FUSED: Final = "com.microsoft"
BLOCKED: Final = -1e4
DENSE_TOKENS: Final = 64  # up to here one masked attention over all tokens is cheaper than one a window column


class GraphBuilder:
    """Nodes and constants of one graph, in the order of their making; methods return names of tensors."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Tensor) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().numpy()), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: tuple[str, ...] = ("y",), **attributes: Any) -> tuple[str, ...]:
        """A node; `outputs` names them, "" leaves one out, as "" among the inputs does."""
        names = tuple(f"{output}{len(self.nodes)}" for output in outputs)
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def one(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.add(operator, *inputs, **attributes)[0]

    def reshape(self, x: str, *shape: int) -> str:
        return self.one("Reshape", x, self.constant(torch.tensor(shape)))

    def product(self, x: str, weight: Tensor) -> str:
        """x weight^T."""
        return self.one("MatMul", x, self.constant(weight.T))

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """x weight^T + bias."""
        return self.one("Add", self.product(x, weight), self.constant(bias))

    def norm(self, x: str, layer: nn.LayerNorm) -> str:
        affine = (self.constant(layer.weight), self.constant(layer.bias))
        return self.one("LayerNormalization", x, *affine, axis=-1, epsilon=layer.eps)

    def save(self, path: Path, given: tuple[Any, ...], made: tuple[Any, ...], name: str) -> None:
        """Write the graph. `given`, `made`: a tensor and its sizes; what is made is called `name` outside."""
        self.nodes.append(helper.make_node("Identity", [made[0]], [name]))
        graph = helper.make_graph(
            self.nodes,
            "serving",
            [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1:])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, made[1:])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), path)


def write_encoder(part: ModalityModel, path: Path) -> None:
    """Write `x_1KTF` -> `u_1D` of one modality in eval mode (no dropout), static in shape, fp32.

    Raises TrainingError for an encoder that has no layout here.
    """
    encoder = part.encoder
    if not isinstance(encoder, SwinEncoder):
        raise TrainingError(
            f"{type(encoder).__name__} cannot be served", where=str(path), fix="add it to aligner/serving_graph.py"
        )
    g = GraphBuilder()
    with torch.no_grad():
        tokens = encoder_tokens(g, "x_1KTF", encoder)
        r = g.reshape(tokens, 1, encoder.last_grid[0] * encoder.last_grid[1] * encoder.last_width)
        if encoder.skip:
            r = g.one("Concat", r, g.reshape("x_1KTF", 1, -1), axis=1)
        compress, linear, layers = part.compress, part.shared.linear, part.shared.mlp
        e = g.linear(r, compress.weight, -compress.weight @ compress.mean)
        u = g.one("Add", g.linear(e, linear.weight, linear.bias), mlp(g, e, layers[0], layers[-1]))
    g.save(path, ("x_1KTF", 1, *encoder.shape_KTF), (u, 1, linear.out_features), "u_1D")


def write_head(head: nn.Linear, path: Path) -> None:
    """Write `u_1D` -> `logits_1Y`, static in shape, fp32."""
    g = GraphBuilder()
    logits = g.linear("u_1D", head.weight, head.bias)
    g.save(path, ("u_1D", 1, head.in_features), (logits, 1, head.out_features), "logits_1Y")


def mlp(g: GraphBuilder, x: str, first: nn.Module, last: nn.Module) -> str:
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    hidden = g.one("Gelu", g.linear(x, first.weight, first.bias), domain=FUSED)
    return g.linear(hidden, last.weight, last.bias)


def encoder_tokens(g: GraphBuilder, x: str, encoder: SwinEncoder) -> str:
    """`x_1KTF` -> the last grid's tokens, normalised: [L, D]."""
    grid = encoder.grid
    x = g.norm(patches(g, x, encoder.shape_KTF, encoder.embed), encoder.embed.norm)
    for stage in encoder.stages:
        if isinstance(stage, PatchMerging):
            x, grid = merge(g, x, grid, stage), stage.grid
        else:
            assert isinstance(stage, SwinBlock)
            x = g.one("Add", x, attention(g, g.norm(x, stage.norm1), grid, stage))
            x = g.one("Add", x, mlp(g, g.norm(x, stage.norm2), stage.mlp.fc1, stage.mlp.fc2))
    return g.norm(x, encoder.norm)


def attention(g: GraphBuilder, x: str, grid: tuple[int, int], block: SwinBlock) -> str:
    """Attention inside (shifted) windows and its projection."""
    attn, width = block.attn, block.attn.qkv.in_features
    index_GS, bias_GHSS, place_L = attention_groups(grid, block)
    qkv = g.linear(x, attn.qkv.weight, attn.qkv.bias)
    if len(index_GS) == 1:
        qkv = g.reshape(qkv, 1, len(place_L), 3 * width)
    else:
        qkv = g.one("Gather", qkv, g.constant(index_GS), axis=0)
    q, k, v = g.add("Split", qkv, g.constant(torch.tensor([width] * 3)), outputs=("q", "k", "v"), axis=-1)
    inputs = (q, k, v, "", "", g.constant(bias_GHSS))
    out = g.one("MultiHeadAttention", *inputs, domain=FUSED, num_heads=attn.heads, scale=attn.scale)
    out = g.reshape(out, index_GS.numel(), width)
    if len(index_GS) > 1:
        out = g.one("Gather", out, g.constant(place_L), axis=0)
    return g.linear(out, attn.proj.weight, attn.proj.bias)


def attention_groups(grid: tuple[int, int], block: SwinBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are in one attention: `index_GS` (tokens; 0 where a group is short), `bias_GHSS`, `place_L`.

    A group is one column of windows along time, or all tokens of a small grid; the bias, which is relative position
    inside a window and BLOCKED everywhere else, makes it the attention of each window alone. `place_L` is where in
    the groups, laid flat, each token stands.
    """
    tokens = grid[0] * grid[1]
    windows_WS = block.gather.view(block.windows, -1)
    attn, size = block.attn, windows_WS.shape[1]
    relative = attn.relative_position_bias_table[attn.relative_position_index.view(-1)].view(size, size, attn.heads)
    bias_HLL = torch.full((attn.heads, tokens, tokens), BLOCKED)
    for w, window_S in enumerate(windows_WS):
        seen_SS = torch.ones(size, size, dtype=torch.bool) if block.mask_WSS is None else block.mask_WSS[w] == 0
        real_S = window_S < tokens
        here_HSS = torch.where(seen_SS[:, :, None], relative, BLOCKED).permute(2, 0, 1)
        t = window_S[real_S]
        bias_HLL[:, t[:, None], t] = here_HSS[:, real_S][:, :, real_S]
    columns = 1 if tokens <= DENSE_TOKENS else -(-grid[1] // attn.window[1])
    groups = [torch.sort(column[column < tokens]).values for column in windows_WS.view(-1, columns, size).unbind(1)]
    longest = max(len(group) for group in groups)
    index_GS = torch.zeros(columns, longest, dtype=torch.long)
    bias_GHSS = torch.full((columns, attn.heads, longest, longest), BLOCKED)
    place_L = torch.empty(tokens, dtype=torch.long)
    for c, t in enumerate(groups):
        index_GS[c, : len(t)] = t
        bias_GHSS[c, :, : len(t), : len(t)] = bias_HLL[:, t[:, None], t]
        place_L[t] = c * longest + torch.arange(len(t))
    return index_GS, bias_GHSS, place_L


def patches(g: GraphBuilder, x: str, shape_KTF: tuple[int, int, int], embed: PatchEmbedding) -> str:
    """The patch embedding as one matrix product over patches laid flat: [L, D]."""
    channels = shape_KTF[0]
    (rows, columns), (height, width) = embed.grid, embed.patch
    if any(embed.padding):
        _, right, _, below = embed.padding
        x = g.one("Pad", x, g.constant(torch.tensor([0, 0, 0, 0, 0, 0, below, right])))
    x = g.reshape(x, channels, rows, height, columns, width)
    x = g.one("Transpose", x, perm=[1, 3, 0, 2, 4])
    x = g.reshape(x, rows * columns, channels * height * width)
    assert embed.project.bias is not None
    return g.linear(x, embed.project.weight.flatten(1), embed.project.bias)


def merge(g: GraphBuilder, x: str, grid: tuple[int, int], merging: PatchMerging) -> str:
    """2 x 2 neighbours side by side, norm, reduction."""
    tokens, width = grid[0] * grid[1], merging.reduction.in_features // 4
    small = merging.grid[0] * merging.grid[1]
    if 4 * small > tokens:
        x = g.one("Concat", x, g.constant(torch.zeros(1, width)), axis=0)
    x = g.one("Gather", x, g.constant(merging.gather), axis=0)
    x = g.norm(g.reshape(x, small, 4 * width), merging.norm)
    return g.product(x, merging.reduction.weight)
