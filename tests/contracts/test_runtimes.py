from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import inference.runtimes
from inference.runtimes import RUNTIMES, make_runtime
from infomae_stream.errors import BundleError, ConfigError
from tests.tiny_bundle import encoder_graph

SHAPE_KTF = (2, 3, 4)
WEIGHTS = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
DECLARED = {
    "input_shape": (1, *SHAPE_KTF),
    "output_shape": (1, 5),
    "where": "test",
}

every_runtime = pytest.mark.parametrize("name", sorted(RUNTIMES))


def test_every_module_in_the_folder_is_listed() -> None:
    folder = Path(inference.runtimes.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules == {entry.split(":")[0].rpartition(".")[2] for entry in RUNTIMES.values()}


@every_runtime
def test_a_graph_computes_what_it_says(name: str) -> None:
    graph = make_runtime(name, threads=1).load(encoder_graph(SHAPE_KTF, WEIGHTS), **DECLARED)
    x = np.random.default_rng(1).normal(size=(1, *SHAPE_KTF)).astype(np.float32)
    out = graph(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, x.reshape(1, -1) @ WEIGHTS, rtol=1e-5, atol=1e-5)


@every_runtime
@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": (1, 2, 3, 5)},
        {"input_shape": (2, *SHAPE_KTF)},
        {"output_shape": (1, 6)},
    ],
)
def test_other_shapes_are_refused(name: str, change: dict[str, object]) -> None:
    with pytest.raises(BundleError) as caught:
        make_runtime(name, threads=1).load(encoder_graph(SHAPE_KTF, WEIGHTS), **{**DECLARED, **change})
    assert caught.value.reason == "contract"


@every_runtime
@pytest.mark.parametrize("model", [b"", b"garbage", encoder_graph(SHAPE_KTF, WEIGHTS)[:-40]])
def test_what_is_no_model_is_refused(name: str, model: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        make_runtime(name, threads=1).load(model, **DECLARED)
    assert caught.value.reason == "contract"


@every_runtime
def test_an_input_of_another_shape_is_an_error_of_the_tree(name: str) -> None:
    graph = make_runtime(name, threads=1).load(encoder_graph(SHAPE_KTF, WEIGHTS), **DECLARED)
    with pytest.raises(BundleError) as caught:
        graph(np.zeros((1, 2, 3, 5), dtype=np.float32))
    assert caught.value.reason == "runtime"


def test_an_unknown_runtime_is_a_setting_that_is_wrong() -> None:
    with pytest.raises(ConfigError, match="known: onnx"):
        make_runtime("abacus", threads=1)
