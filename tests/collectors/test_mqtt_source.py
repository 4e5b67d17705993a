"""Foreign publishers: every layout of payloads, what is refused and why, and a real broker that comes and goes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from collectors.sensing.foreign_payload import Layout, payload_reader
from collectors.sources import Reading
from collectors.sources.mqtt import MqttSource
from infomae_stream.clock import NS_PER_S, SystemClock
from infomae_stream.errors import ConfigError, DataError
from tests.brokers import Broker, free_port
from tests.sensor_rig import Rig, pieces_of, samples_of
from tests.waiting import PATIENCE_S, wait_until

T = 1_700_000_000
OPTIONS: dict[str, Any] = {
    "topics": {"garden/+/acc": "acc"},
    "kind": "accelerometer",
    "rate_hz": 50,
    "channels": ["x", "y"],
    "units": ["m/s2", "m/s2"],
}


@pytest.mark.parametrize(
    ("layout", "payload", "start_ns", "samples_CN"),
    [
        (
            {"samples": "s", "time": "t"},
            json.dumps({"t": T + 0.25, "s": [[1, 2], [3, 4.5]]}).encode(),
            T * NS_PER_S + 250_000_000,
            [[1, 3], [2, 4.5]],
        ),
        ({"samples": "s"}, b'{"s": [1, 2]}', None, [[1], [2]]),
        ({}, b"[[1, 2], [3, 4]]", None, [[1, 3], [2, 4]]),
        (
            {"fields": ["ax", "ay"], "time": "ms", "time_unit": "ms"},
            b'{"ms": 1500, "ax": 1, "ay": -2}',
            1_500_000_000,
            [[1], [-2]],
        ),
        ({"fields": ["ax", "ay"]}, b'{"ax": [1, 2, 3], "ay": [4, 5, 6]}', None, [[1, 2, 3], [4, 5, 6]]),
        (
            {"form": "cbor", "samples": "s", "time": "t", "time_unit": "iso"},
            cbor2.dumps({"t": "2023-11-14T22:13:20Z", "s": [[1, 2]]}),
            T * NS_PER_S,
            [[1], [2]],
        ),
        ({"form": "raw", "dtype": "int16"}, struct.pack("<4h", 1, -2, 3, -4), None, [[1, 3], [-2, -4]]),
        (
            {"form": "raw", "dtype": "float32", "raw_time": "u64", "time_unit": "us"},
            struct.pack("<Q2f", T * 10**6 + 1, 0.5, 1.5),
            T * NS_PER_S + 1000,
            [[0.5], [1.5]],
        ),
        (
            {"form": "raw", "dtype": "int32", "raw_time": "f64"},
            struct.pack("<d2i", T + 0.5, 2**31 - 1, -(2**31)),
            T * NS_PER_S + 500_000_000,
            [[2**31 - 1], [-(2**31)]],
        ),
    ],
)  # fmt: skip
def test_every_layout_is_read(layout: dict[str, Any], payload: bytes, start_ns: int | None, samples_CN: Any) -> None:
    block = payload_reader(Layout(**layout), 2)(payload)
    assert block.start_ns == start_ns
    assert block.samples_CN.tolist() == samples_CN
    assert block.samples_CN.dtype.name == layout.get("dtype", "float32")


def test_a_stream_of_one_channel_may_send_a_bare_number_or_a_list() -> None:
    read = payload_reader(Layout(), 1)
    assert read(b"21.5").samples_CN.tolist() == [[21.5]]
    assert read(b"[1, 2, 3]").samples_CN.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("layout", "payload"),
    [
        ({"samples": "s"}, b"no json"),
        ({"samples": "s"}, b'{"other": [[1, 2]]}'),
        ({"samples": "s"}, b'{"s": [[1, 2], [3]]}'),
        ({"samples": "s"}, b'{"s": [[1, 2, 3]]}'),
        ({"samples": "s"}, b'{"s": [["1", "2"]]}'),
        ({"samples": "s"}, b'{"s": [[true, false]]}'),
        ({"samples": "s"}, b'{"s": [[1, NaN]]}'),
        ({"samples": "s"}, b'{"s": []}'),
        ({"samples": "s", "dtype": "int16"}, b'{"s": [[1, 40000]]}'),
        ({"samples": "s", "time": "t"}, b'{"s": [[1, 2]], "t": "noon"}'),
        ({"samples": "s", "time": "t"}, b'{"s": [[1, 2]]}'),
        ({"fields": ["a", "b"]}, b'{"a": [1, 2], "b": [1]}'),
        ({}, b"[" * 100_000),
        ({"form": "cbor"}, b"\x9b" + b"\xff" * 8),
        ({"form": "cbor"}, cbor2.dumps([[1, 2]]) + b"\x00"),
        ({"form": "raw", "dtype": "int16"}, b"\0" * 6),
        ({"form": "raw", "dtype": "int16"}, b""),
        ({"form": "raw", "dtype": "float32"}, struct.pack("<2f", 1, np.nan)),
        ({"form": "raw", "dtype": "int16", "raw_time": "u64"}, b"\0" * 4),
    ],
)
def test_what_is_not_of_the_layout_is_refused(layout: dict[str, Any], payload: bytes) -> None:
    with pytest.raises(DataError):
        payload_reader(Layout(**layout), 2)(payload)


@given(st.binary(max_size=300), st.sampled_from(["json", "cbor", "raw"]))
def test_no_bytes_break_the_reader(payload: bytes, form: Any) -> None:
    try:
        block = payload_reader(Layout(form=form, samples="" if form == "raw" else "s"), 2)(payload)
    except DataError:
        return
    assert block.samples_CN.shape[0] == 2 and np.isfinite(block.samples_CN).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"payload": {"form": "raw", "samples": "s"}}, "raw payloads have no keys"),
        ({"payload": {"raw_time": "u64"}}, "raw_time is for form = 'raw'"),
        ({"payload": {"time_unit": "minutes"}}, r"payload\.time_unit"),
        ({"topics": {"a/#/b": "acc"}}, "is no topic filter"),
        ({"topics": {}}, "topics"),
        ({"topics": {"a": "Not An Id"}}, "is not an id"),
    ],
)
def test_a_wrong_layout_is_refused_by_its_key(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rig(tmp_path).make(type="mqtt", **{**OPTIONS, **options})


# -- with a real broker ------------------------------------------------------------------------------------------------


class Publisher:
    """A foreign device: plain paho, QoS 1."""

    def __init__(self, port: int) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="esp32")
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker("mosquitto", tmp_path).start()
    yield made
    made.stop()


def collect(source: MqttSource, enough: Callable[[list[Reading]], bool]) -> list[Reading]:
    readings: list[Reading] = []
    wait_until(lambda: readings.extend(source.poll(0.1)) or enough(readings), what="readings")
    return readings


def taken(readings: list[Reading]) -> int:
    return sum(r.samples_CN.shape[1] for r in readings)


def block(k: int) -> bytes:
    """25 samples, half a second: sample i of channel x counts i."""
    rows = [[i, -i] for i in range(25 * k, 25 * (k + 1))]
    return json.dumps({"t": round(T + k / 2 + 0.0004, 3), "s": rows}).encode()


@pytest.mark.slow
def test_a_publisher_becomes_a_stream_and_the_broker_keeps_what_comes_meanwhile(tmp_path: Path, broker: Broker) -> None:
    rig = Rig(tmp_path, SystemClock())
    options = {**OPTIONS, "broker": {"port": broker.port}, "payload": {"samples": "s", "time": "t"}}
    source = rig.make(type="mqtt", **options)
    wait_until(lambda: source.connected, what="the connection")
    publisher = Publisher(broker.port)
    readings = []
    try:
        # The first message may come before the subscription: it is sent until it is heard.
        wait_until(
            lambda: publisher.send("garden/porch/acc", block(0)) or readings.extend(source.poll(0.2)) or readings,
            what="the first block",
        )
        rig.refused.clear()
        for k in range(1, 5):
            publisher.send("garden/porch/acc", block(k))
        readings += collect(source, lambda found: taken(found) >= 100)
        source.close()
        for k in range(5, 8):
            publisher.send("garden/porch/acc", block(k))
        source = rig.make(type="mqtt", **options)
        readings += collect(source, lambda found: taken(found) >= 75)
    finally:
        publisher.close()
        source.close()
    pieces = pieces_of(source, readings)
    np.testing.assert_array_equal(samples_of(pieces), [np.arange(200), -np.arange(200)])
    assert sum(p.hole_ns for p in pieces) == 0 and abs(pieces[0].start_ns - T * NS_PER_S) < 2_000_000
    assert {(r.clock.source, r.clock.uncertainty_ns) for r in readings if r.clock} == {("publisher", 50_000_000)}


@pytest.mark.slow
def test_what_cannot_be_taken_is_counted_by_reason(tmp_path: Path, broker: Broker) -> None:
    rig = Rig(tmp_path, SystemClock())
    layout = {"samples": "s", "time": "t"}
    publisher = Publisher(broker.port)
    publisher.send("garden/old/acc", block(9), retain=True)
    source = rig.make(
        type="mqtt", **{**OPTIONS, "broker": {"port": broker.port}, "payload": layout, "max_payload_bytes": 2000}
    )
    try:
        wait_until(lambda: source.poll(0.1) == [] and rig.refused["acc", "retained"] == 1, what="the retained message")
        publisher.send("garden/porch/acc", b"garbage")
        publisher.send("garden/porch/acc", b" " * 2001)
        publisher.send("garden/porch/acc", block(1))
        publisher.send("garden/porch/acc", block(1))
        publisher.send("garden/porch/acc", block(0))
        publisher.send("garden/porch/acc", block(2))
        readings = collect(source, lambda found: taken(found) >= 50)
    finally:
        publisher.close()
        source.close()
    assert [r.samples_CN[0, 0] for r in readings] == [25, 50]
    assert rig.refused == {
        ("acc", "retained"): 1,
        ("acc", "malformed"): 1,
        ("acc", "too_large"): 1,
        ("acc", "late"): 2,
    }


@pytest.mark.slow
def test_without_a_time_in_the_payload_the_arrival_counts_and_its_uncertainty_is_told(
    tmp_path: Path, broker: Broker
) -> None:
    rig = Rig(tmp_path, SystemClock())
    payload = {"form": "raw", "dtype": "int16"}
    source = rig.make(type="mqtt", **{**OPTIONS, "broker": {"port": broker.port}, "payload": payload})
    publisher = Publisher(broker.port)
    before_ns = rig.clock.now_ns()
    try:
        wait_until(lambda: source.connected, what="the connection")
        readings: list[Reading] = []
        wait_until(
            lambda: (
                publisher.send("garden/x/acc", struct.pack("<100h", *range(100)))
                or readings.extend(source.poll(0.2))
                or readings
            )
        )
    finally:
        publisher.close()
        source.close()
    after_ns = rig.clock.now_ns()
    first = readings[0]
    assert first.clock is None and first.uncertainty_ns == 250_000_000 and first.monotonic_ns > 0
    assert before_ns - NS_PER_S <= first.start_ns <= after_ns - 49 * 20_000_000


def test_no_broker_is_no_reason_to_fail(tmp_path: Path) -> None:
    source = Rig(tmp_path, SystemClock()).make(type="mqtt", **{**OPTIONS, "broker": {"port": free_port()}})
    assert source.poll(0.0) == []
    source.close()
