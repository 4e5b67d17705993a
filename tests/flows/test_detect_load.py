"""A model that this machine cannot keep up with: windows go, raw data never."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from inference.service import make_loop
from infomae_stream.bundle import save_keys
from infomae_stream.clock import SystemClock
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.outbox import Outbox
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.types import ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import decode_detection
from tests.brokers import wait_until
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, PRIVATE_KEY, TinyBundle

S = 10**9
START_NS = 1_500_000_000 * S
HOP_S, MAX_LAG_S = 0.1, 0.5
SIDE = 2200  # of a product of two square matrices: 21 GFLOP a window


def slow_encoder(tiny: TinyBundle, name: str) -> bytes:
    """The same result as ever, beside a large product of matrices that depends on the input and counts for nothing."""
    shape_KTF, weights = tiny.front_ends[name].shape_KTF, tiny.weights[name]
    constants = {
        "w": weights,
        "size": np.array([SIDE, SIDE], np.int64),
        "none": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["right"]),
        helper.make_node("ReduceMax", ["flat"], ["one"], keepdims=1),
        helper.make_node("Expand", ["one", "size"], ["square"]),
        helper.make_node("MatMul", ["square", "square"], ["product"]),
        helper.make_node("ReduceMin", ["product"], ["least"], keepdims=1),
        helper.make_node("Mul", ["least", "none"], ["nothing"]),
        helper.make_node("Add", ["right", "nothing"], ["u"]),
    ]
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "slow",
        [values("x", TensorProto.FLOAT, [1, *shape_KTF])],
        [values("u", TensorProto.FLOAT, [1, weights.shape[1]])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class SlowNode:
    """One phone, a detector, and a bundle whose encoder takes longer than a hop."""

    def __init__(self, folder: Path) -> None:
        save_keys(folder, PRIVATE_KEY)
        self._clock = SystemClock()
        node = NodeSettings(site="s01", node="n", sources=[{}])
        detect = {
            "trusted_keys": ["release.pub"],
            "max_lag_s": MAX_LAG_S,
            "events": {"max_s": 0.001, "merge_gap_s": 0.0, "idle_s": 0.001},  # each window a record
        }
        self.config = NodeConfig(base_dir=folder, detect=detect, nodes=[node])
        self.outbox = Outbox.open(self.config.outbox_path(node), self._clock, max_bytes=10**9, reserve_bytes=0)
        self.telemetry = Telemetry()
        self.loop = make_loop(self.config, self._clock, self.telemetry, EventLog("test"))
        self.seconds = 0

    def install(self, folder: Path) -> None:
        tiny = TinyBundle(modalities=("phone_imu",), hop_s=HOP_S, n_golden=1)
        info = tiny.write(folder / "1.zip", encoder_phone_imu_onnx=slow_encoder(tiny, "phone_imu"))
        desired = {"v": 1, "version": 1, "sha256": info.sha256, "url": info.path.as_uri()}
        self.outbox.set_state("bundle_desired", json.dumps(desired).encode())

        def serves() -> bool:
            self.loop.step()
            self.loop.commit()
            return b'"serving"' in (self.outbox.get_state("bundle_observed") or b"")

        wait_until(serves, 120, "the bundle serves")

    def live_a_second(self) -> None:
        spec = StreamSpec(StreamId("s01", "n", "imu"), "imu", 100.0, IMU_CHANNELS, IMU_UNITS, (100.0,) * 6, "phone_imu")
        counts = np.random.default_rng(self.seconds).integers(-900, 900, size=(6, 100)).astype(np.int16)
        self.outbox.put_chunk(spec, START_NS + self.seconds * S, counts, ClockQuality("test"))
        self.outbox.commit()
        self.seconds += 1
        self.loop.step()

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)

    def dropped(self, reason: str) -> float:
        return self.metric("infomae_windows_dropped_total", site="s01", node="n", reason=reason) or 0.0

    def close(self) -> None:
        self.loop.close()
        self.outbox.close()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowNode]:
    with closing(SlowNode(tmp_path)) as made:
        made.install(tmp_path)
        yield made


@pytest.mark.slow
def test_a_node_that_cannot_keep_up_drops_windows_and_never_raw_data(slow: SlowNode) -> None:
    def told() -> bool:
        slow.live_a_second()
        return slow.metric("infomae_inference_realtime_factor") is not None and slow.dropped("lag") > 0

    wait_until(told, 120, "the real-time factor, and windows that were dropped")
    factor = slow.metric("infomae_inference_realtime_factor")
    looked = slow.metric("infomae_inference_duration_seconds_count")
    assert factor is not None and factor > 1.0, "which is how an operator sees it"
    assert looked is not None and looked > 0
    # Each window is looked at, dropped for its age, or one of those that begin before the first sample.
    decided = (slow.seconds - 2) / HOP_S + 1
    assert looked + slow.dropped("lag") + slow.dropped("coverage") == pytest.approx(decided + 2.0 / HOP_S - 1)
    chunks = slow.outbox.tail_chunks(0, 10_000)
    assert [c.start_ns for c in chunks] == [START_NS + s * S for s in range(slow.seconds)]
    slow.loop.commit()
    found = [decode_detection(r.payload) for r in slow.outbox.pending(10**9) if r.topic.endswith("/detections")]
    assert len(found) <= looked
    oldest_first = sorted(d.end_ns for d in found)
    assert len(set(oldest_first)) == len(oldest_first), "no window twice"
