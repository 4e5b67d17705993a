"""Small bundles for tests: real ONNX graphs with seeded random weights, real signatures, golden vectors by numpy.

Legend: B windows, C channels, N samples, K T F spectrogram, D embedding, Y classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from infomae_stream.bundle import BundleInfo, generate_keys, write_bundle
from infomae_stream.golden import ALL, Golden
from infomae_stream.spectrogram import FrontEnd, SpectrogramSpec

PRIVATE_KEY, PUBLIC_KEY = generate_keys()
CLASSES = ("still", "walk", "stairs")
FAR_FUTURE_NS = 4_000_000_000 * 1_000_000_000
IMU_CHANNELS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
IMU_UNITS = ("m/s2",) * 3 + ("rad/s",) * 3
DIM = 8


class TinyBundle:
    """The parts of a bundle, to be changed by a test before `write`."""

    def __init__(
        self,
        *,
        version: int = 1,
        seed: int = 0,
        modalities: tuple[str, ...] = ("phone_imu", "watch_imu"),
        window_s: float = 2.0,
        hop_s: float = 0.5,
        dim: int = DIM,
        n_golden: int = 2,
        int8: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.fields: dict[str, Any] = {
            "version": version,
            "created_ns": 1,
            "expires_ns": FAR_FUTURE_NS,
            "classes": list(CLASSES),
            "modalities": {},
            "lineage": {"snapshot": "test"},
            "gates": {"finite": True},
        }
        self.weights: dict[str, NDArray[np.float32]] = {}
        self.front_ends: dict[str, FrontEnd] = {}
        windows_BCN: dict[str, NDArray[np.float32]] = {}
        for name in modalities:
            spec = SpectrogramSpec(rate_hz=100, window_s=window_s, interval_s=0.4, interval_hop_s=0.2, channels=6)
            x_BCN = rng.normal(size=(n_golden, 6, spec.window_samples)).astype(np.float32)
            front_end = FrontEnd.fit(x_BCN, spec)
            self.front_ends[name], windows_BCN[name] = front_end, x_BCN
            self.weights[name] = rng.normal(size=(int(np.prod(front_end.shape_KTF)), dim)).astype(np.float32) / 50
            self.fields["modalities"][name] = {
                "kind": "imu",
                "rate_hz": 100.0,
                "channels": list(IMU_CHANNELS),
                "units": list(IMU_UNITS),
                "window_s": window_s,
                "hop_s": hop_s,
                "min_coverage": 0.95,
                "max_gap_s": 0.2,
                "front_end": front_end.to_dict(),
                "encoder": f"encoder_{name}.onnx",
                "dim": dim,
            }
            if int8:
                self.fields["modalities"][name]["encoder_int8"] = f"encoder_{name}.int8.onnx"
        self.int8 = int8
        self.weights["head"] = rng.normal(size=(dim, len(CLASSES))).astype(np.float32)
        self.golden = Golden(windows_BCN, {})
        self.golden = Golden(windows_BCN, self._golden_scores())

    def scores(self, windows_BCN: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """softmax(head(mean u)), the slow obvious way, (B, Y)."""
        u_BD = np.mean([self.u(name, x_BCN) for name, x_BCN in windows_BCN.items()], axis=0)
        logits_BY = (u_BD @ self.weights["head"]).astype(np.float64)
        e_BY = np.exp(logits_BY - logits_BY.max(axis=1, keepdims=True))
        return np.asarray(e_BY / e_BY.sum(axis=1, keepdims=True))

    def u(self, name: str, x_BCN: NDArray[np.float32]) -> NDArray[np.float32]:
        x_BKTF = self.front_ends[name](x_BCN)
        return np.asarray(x_BKTF.reshape(len(x_BKTF), -1) @ self.weights[name])

    def _golden_scores(self) -> dict[str, NDArray[np.float64]]:
        windows = dict(self.golden.windows)
        return {name: self.scores({name: x_BCN}) for name, x_BCN in windows.items()} | {ALL: self.scores(windows)}

    def files(self) -> dict[str, bytes]:
        encoders = {
            f"encoder_{name}.onnx": encoder_graph(fe.shape_KTF, self.weights[name])
            for name, fe in self.front_ends.items()
        }
        if self.int8:
            encoders |= {
                f"encoder_{name}.int8.onnx": int8_encoder_graph(fe.shape_KTF, self.weights[name])
                for name, fe in self.front_ends.items()
            }
        return {**encoders, "head.onnx": head_graph(self.weights["head"]), "golden.npz": self.golden.dump()}

    def write(self, path: Path, **replaced: bytes) -> BundleInfo:
        """`replaced`: member names with `_` for `.`, and their bytes."""
        files = self.files() | {member_name(name): content for name, content in replaced.items()}
        return write_bundle(path, self.fields, files, PRIVATE_KEY)


def member_name(keyword: str) -> str:
    """head_onnx -> head.onnx, encoder_a_int8_onnx -> encoder_a.int8.onnx."""
    stem, _, suffix = keyword.replace("_int8_", ".int8_").rpartition("_")
    return f"{stem}.{suffix}"


def encoder_graph(shape_KTF: tuple[int, int, int], weights: NDArray[np.float32], input_name: str = "x") -> bytes:
    """x (1, K, T, F) -> u (1, D)."""
    nodes = [
        helper.make_node("Flatten", [input_name], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["u"]),
    ]
    inputs = [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [1, *shape_KTF])]
    return _model(nodes, inputs, "u", [numpy_helper.from_array(weights, "w")], weights.shape[1])


def int8_encoder_graph(shape_KTF: tuple[int, int, int], weights: NDArray[np.float32]) -> bytes:
    """As encoder_graph, its product in int8: one scale a column of weights, one for the input as it comes."""
    scale_D = np.abs(weights).max(axis=0).astype(np.float32) / np.float32(63)
    steps = np.round(weights / scale_D).astype(np.int8)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("DynamicQuantizeLinear", ["flat"], ["q", "q_scale", "q_zero"]),
        helper.make_node("MatMulInteger", ["q", "steps", "q_zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["q_scale", "scale"], ["scales"]),
        helper.make_node("Mul", ["sum", "scales"], ["u"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape_KTF])]
    constants = [numpy_helper.from_array(steps, "steps"), numpy_helper.from_array(scale_D, "scale")]
    return _model(nodes, inputs, "u", constants, weights.shape[1])


def head_graph(weights: NDArray[np.float32]) -> bytes:
    """u (1, D) -> logits (1, Y)."""
    nodes = [helper.make_node("MatMul", ["u", "w"], ["logits"])]
    inputs = [helper.make_tensor_value_info("u", TensorProto.FLOAT, [1, weights.shape[0]])]
    return _model(nodes, inputs, "logits", [numpy_helper.from_array(weights, "w")], weights.shape[1])


def _model(nodes: list[Any], inputs: list[Any], output: str, constants: list[Any], width: int) -> bytes:
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, width])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
