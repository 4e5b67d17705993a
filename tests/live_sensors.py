"""One rig a live source: it makes the source with a double of its device, and feeds it one block of samples a call."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from collectors.sources import Source, check_options
from collectors.sources.raspberry_shake import format_datagram
from infomae_stream.clock import NS_PER_S, ManualClock, SystemClock
from tests.brokers import Broker
from tests.iio_tree import IioTree
from tests.imu_model import ImuModel
from tests.seedlink_server import SeedLinkServer
from tests.sensor_files import miniseed_bytes
from tests.sensor_rig import Rig
from tests.sound_double import SoundDouble
from tests.waiting import PATIENCE_S, send_datagram, wait_until


class LiveSensor(Protocol):
    name: str
    rig: Rig
    options: dict[str, Any]

    def make(self) -> Source:
        """The source, opened."""

    def feed(self) -> None:
        """Some more samples of every stream, without a gap; moves the rig's clock along."""

    def close(self) -> None:
        """Give back the double; the source closes itself."""


def far_ahead(next_ns: int, rig: Rig) -> bool:
    """Enough was fed; where it does not arrive yet, more would only be data of an ever later future."""
    ahead = next_ns - rig.clock.now_ns() > 20 * NS_PER_S
    time.sleep(0.02 * ahead)
    return ahead


class ShakeSensor:
    name = "raspberry_shake"

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder, ManualClock())
        self.options = {"station": "R1234", "port": 0, "channels": {"EHZ": {}, "HDF": {"kind": "acoustic"}}}

    def make(self) -> Source:
        self._source = self.rig.make(type=self.name, **self.options)
        return self._source

    def feed(self) -> None:
        for channel in ("EHZ", "HDF"):
            datagram = format_datagram(channel, self.rig.clock.now_ns(), range(25))
            send_datagram(datagram, self._source._socket)
        self.rig.clock.sleep(0.25)

    def close(self) -> None:
        return


class IioSensor:
    name = "iio"

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder, ManualClock())
        self._tree = IioTree(folder)
        self.options = {"rate_hz": 100, **self._tree.options}
        self._count = 0

    def make(self) -> Source:
        return self.rig.make(type=self.name, **self.options)

    def feed(self) -> None:
        for _ in range(10):
            times_ns = self.rig.clock.now_ns()
            self._tree.give(struct.pack("<6h4xq", *range(self._count % 1000, self._count % 1000 + 6), times_ns))
            self._count += 1
            self.rig.clock.sleep(0.01)

    def close(self) -> None:
        self._tree.close()


class MqttSensor:
    """Needs a real broker; slow."""

    name = "mqtt"

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder, SystemClock())
        self._broker = Broker("mosquitto", folder).start()
        self.options = {
            "broker": {"port": self._broker.port},
            "topics": {"porch/acc": "acc"},
            "kind": "accelerometer",
            "rate_hz": 100,
            "channels": ["x", "y", "z"],
            "units": ["m/s2"] * 3,
            "payload": {"samples": "s", "time": "t", "time_unit": "ns"},
        }
        self._publisher = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="esp32")
        self._publisher.connect("127.0.0.1", self._broker.port)
        self._publisher.loop_start()
        self._next_ns = self.rig.clock.now_ns()

    def make(self) -> Source:
        source = self.rig.make(type=self.name, **self.options)
        # That the subscription stands the broker tells the source alone; a retained word does not come before it.
        self._publisher.publish("porch/acc", b"there?", qos=1, retain=True).wait_for_publish(PATIENCE_S)
        wait_until(lambda: source.poll(0.1) == [] and self.rig.refused, what="the subscription")
        self.rig.refused.clear()
        return source  # type: ignore[no-any-return]

    def feed(self) -> None:
        if far_ahead(self._next_ns, self.rig):
            return
        rows = [[i, -i, 0] for i in range(50)]
        payload = json.dumps({"t": self._next_ns, "s": rows})
        self._publisher.publish("porch/acc", payload, qos=1).wait_for_publish(PATIENCE_S)
        self._next_ns += 500_000_000

    def close(self) -> None:
        self._publisher.disconnect()
        self._publisher.loop_stop()
        self._broker.stop()


class AlsaSensor:
    name = "alsa"

    def __init__(self, folder: Path) -> None:
        self._clock = ManualClock()
        self.rig = Rig(folder, self._clock)
        self.options = {"rate_hz": 16_000, "device": "UMIK-1", "channels": 2}
        self._sound = SoundDouble(self._clock)

    def make(self) -> Source:
        options, cls = check_options({"type": self.name, **self.options}, where="node.toml", prefix=())
        return cls(options, self.rig.context, lambda: self._sound)  # type: ignore[no-any-return]

    def feed(self) -> None:
        self._sound.play(np.arange(2048, dtype=np.int16).reshape(-1, 2))

    def close(self) -> None:
        return


class I2cSensor:
    name = "i2c"

    def __init__(self, folder: Path) -> None:
        self._clock = ManualClock()
        self.rig = Rig(folder, self._clock)
        self.options = {"chip": "icm20948", "rate_hz": 125}
        self._model = ImuModel("icm20948")

    def make(self) -> Source:
        options, cls = check_options({"type": self.name, **self.options}, where="node.toml", prefix=())
        return cls(options, self.rig.context, lambda: self._model)  # type: ignore[no-any-return]

    def feed(self) -> None:
        for k in range(5):
            self._clock.advance(0.008)
            self._model.sample([k] * 6)

    def close(self) -> None:
        return


class SeedLinkSensor:
    name = "seedlink"

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("obspy")
        self.rig = Rig(folder, SystemClock())
        self._server = SeedLinkServer()
        self.options = {"station": "R1234", "port": self._server.port}
        self._next_ns = self.rig.clock.now_ns() // 10_000_000 * 10_000_000  # records hold tenths of milliseconds

    def make(self) -> Source:
        source = self.rig.make(type=self.name, **self.options)
        wait_until(lambda: source.poll(0.05) == [] and "END" in self._server.requests, what="the connection")
        return source  # type: ignore[no-any-return]

    def feed(self) -> None:
        if far_ahead(self._next_ns, self.rig):
            return
        self._server.add(miniseed_bytes(self._next_ns, range(100)))
        self._next_ns += 1_000_000_000

    def close(self) -> None:
        self._server.close()


LIVE: dict[str, Callable[[Path], LiveSensor]] = {
    "seedlink": SeedLinkSensor,
    "alsa": AlsaSensor,
    "i2c": I2cSensor,
    "mqtt": MqttSensor,
    "iio": IioSensor,
    "raspberry_shake": ShakeSensor,
}
