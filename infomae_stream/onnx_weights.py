"""Reads the numbers of an ONNX file without the onnx package: a node has none, and refuses NaN before it serves.

Walks the protobuf encoding over the few fields that can hold weights: initializers, constant tensors and float
attributes, in the graph, its subgraphs and local functions. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np

from infomae_stream.errors import BundleError

Buffer: TypeAlias = bytes | memoryview

# message -> field number -> what stands there: another message, or values to check (onnx.proto, IR version 13).
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {2: "float32", 5: "tensor", 6: "graph", 7: "float32", 10: "tensor", 11: "graph", 22: "sparse"},
    "sparse": {1: "tensor"},
    "tensor": {4: "float32", 10: "float64"},
}
_TENSOR_DATA_TYPE, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 2, 9, 13, 14
_RAW_DTYPE: Final = {1: "<f4", 10: "<f2", 11: "<f8", 14: "<f4", 15: "<f8"}
_BFLOAT16: Final = 16
_MAX_DEPTH: Final = 16


def check_weights(model: Buffer, where: str) -> int:
    """Count the float values of an ONNX model, all finite.

    Raises BundleError: not_finite (NaN or infinity), path (weights in another file), structure (not an ONNX file).
    """
    count = _check(memoryview(model), "model", where, 0)
    if not any(number == 7 for number, _ in _fields(memoryview(model), where)):
        raise BundleError("has no graph", reason="structure", where=where)
    return count


def _check(buffer: memoryview, message: str, where: str, depth: int) -> int:
    if depth > _MAX_DEPTH:
        raise BundleError("graphs are nested too deep", reason="structure", where=where)
    count = _check_raw(buffer, where) if message == "tensor" else 0
    children = _CHILDREN[message]
    for number, value in _fields(buffer, where):
        child = children.get(number)
        if child in ("float32", "float64"):
            count += _check_values(value, "<f4" if child == "float32" else "<f8", where)
        elif child is not None:
            count += _check(memoryview(value), child, where, depth + 1)
    return count


def _check_raw(buffer: memoryview, where: str) -> int:
    data_type, raw = 0, []
    for number, value in _fields(buffer, where):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and _varint(value, 0, where)[0] != 0):
            raise BundleError(
                "keeps weights in another file", reason="path", where=where, fix="export with them inside"
            )
        if number == _TENSOR_DATA_TYPE:
            data_type = _varint(value, 0, where)[0]
        elif number == _TENSOR_RAW:
            raw.append(value)
    if data_type == _BFLOAT16:
        return sum(_check_bfloat16(value, where) for value in raw)
    dtype = _RAW_DTYPE.get(data_type)
    return sum(_check_values(value, dtype, where) for value in raw) if dtype else 0


def _check_values(value: Buffer, dtype: str, where: str) -> int:
    if len(value) % np.dtype(dtype).itemsize:
        raise BundleError("a tensor's bytes are no whole number of values", reason="structure", where=where)
    values = np.frombuffer(value, dtype=dtype)
    _refuse_unless(bool(np.isfinite(values).all()), where)
    return int(values.size)


def _check_bfloat16(value: Buffer, where: str) -> int:
    if len(value) % 2:
        raise BundleError("a tensor's bytes are no whole number of values", reason="structure", where=where)
    exponents = (np.frombuffer(value, dtype="<u2") >> 7) & 0xFF
    _refuse_unless(bool((exponents != 0xFF).all()), where)
    return int(exponents.size)


def _refuse_unless(finite: bool, where: str) -> None:
    if not finite:
        raise BundleError("holds NaN or infinite weights", reason="not_finite", where=where, fix="train again")


def _fields(buffer: memoryview, where: str) -> Iterator[tuple[int, Buffer]]:
    """Field number and encoded value of each field: the bytes of a varint, of a fixed number, or of the content."""
    at = 0
    while at < len(buffer):
        key, at = _varint(buffer, at, where)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            _, end = _varint(buffer, at, where)
        elif wire_type in (1, 5):
            end = at + (8 if wire_type == 1 else 4)
        elif wire_type == 2:
            size, at = _varint(buffer, at, where)
            end = at + size
        else:
            raise BundleError(f"not an ONNX file (wire type {wire_type})", reason="structure", where=where)
        if end > len(buffer) or number == 0:
            raise BundleError("not an ONNX file (a field ends outside it)", reason="structure", where=where)
        yield number, buffer[at:end]
        at = end


def _varint(buffer: Buffer, at: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(buffer) and shift < 64:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BundleError("not an ONNX file (a number does not end)", reason="structure", where=where)
