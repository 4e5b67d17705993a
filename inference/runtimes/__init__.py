"""What runs a bundle's graphs: one file an implementation, found by name in a table so that only one is imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import ConfigError

RUNTIMES: Final[dict[str, str]] = {"onnx": "inference.runtimes.onnx:OnnxRuntime"}


class Graph(Protocol):
    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one input of the declared shape. Raises BundleError(runtime) when the graph fails on it."""


class Runtime(Protocol):
    """Made with `threads`, the number of cores that one call may use."""

    def __init__(self, threads: int) -> None: ...

    def load(
        self,
        model: bytes,
        *,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        where: str,
    ) -> Graph:
        """A graph with one float32 input and one float32 output of fixed shapes, whatever they are called.

        Raises BundleError(contract) when the model cannot be loaded or declares anything else.
        """


def make_runtime(name: str, threads: int) -> Runtime:
    """Raises ConfigError for a name that is not in RUNTIMES."""
    if name not in RUNTIMES:
        raise ConfigError(f"unknown runtime {name!r}", where="detect.runtime", fix=f"known: {', '.join(RUNTIMES)}")
    module, attribute = RUNTIMES[name].split(":")
    made: Any = getattr(import_module(module), attribute)(threads)
    runtime: Runtime = made
    return runtime
