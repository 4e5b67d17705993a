"""ONNX Runtime on the CPU, one window at a time."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from infomae_stream.errors import BundleError

ONNX_RUNTIME_ERRORS = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
)


class _OnnxGraph:
    def __init__(self, session: ort.InferenceSession, input_name: str, where: str) -> None:
        self._session = session
        self._input_name = input_name
        self._where = where

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (out,) = self._session.run(None, {self._input_name: x})
        except ONNX_RUNTIME_ERRORS as e:
            raise BundleError(f"fails while it runs: {str(e)[:200]}", reason="runtime", where=self._where) from e
        return np.asarray(out, dtype=np.float32)


class OnnxRuntime:
    """`threads` within an operator; operators run one after the other, and idle threads do not spin."""

    def __init__(self, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # batch 1 gains nothing from it, and it never gives memory back
        options.log_severity_level = 3
        self._options = options

    def load(
        self,
        model: bytes,
        *,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        where: str,
    ) -> _OnnxGraph:
        try:
            session = ort.InferenceSession(model, self._options, providers=["CPUExecutionProvider"])
        except ONNX_RUNTIME_ERRORS as e:
            raise BundleError(f"cannot be loaded: {str(e)[:200]}", reason="contract", where=where) from e
        inputs, outputs = session.get_inputs(), session.get_outputs()
        declared = [[(a.type, tuple(a.shape)) for a in arguments] for arguments in (inputs, outputs)]
        wanted = [[("tensor(float)", shape)] for shape in (input_shape, output_shape)]
        if declared != wanted:
            raise BundleError(f"declares {declared}, want {wanted}", reason="contract", where=where)
        return _OnnxGraph(session, inputs[0].name, where)
