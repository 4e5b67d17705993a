"""gpsd's reports over a real socket: pulse, serial time, no fix, no gpsd."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from collectors.clock_quality import ClockReader
from collectors.gpsd import WATCH, Gpsd
from infomae_stream.clock import ManualClock
from infomae_stream.node_config import ClockSettings
from tests.brokers import free_port
from tests.waiting import PATIENCE_S, wait_until


class GpsdDouble:
    """Greets as gpsd does and then says what it is told to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self.port = int(self._listener.getsockname()[1])
        self._peer: socket.socket | None = None

    def say(self, *reports: dict[str, Any] | bytes) -> None:
        if self._peer is None:
            self._peer, _ = self._listener.accept()
            assert self._peer.recv(1000) == WATCH
            self._peer.sendall(b'{"class":"VERSION","release":"3.25"}\r\n')
        for report in reports:
            self._peer.sendall(report if isinstance(report, bytes) else json.dumps(report).encode() + b"\r\n")

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def stop(self) -> None:
        self.close()
        self._listener.close()


@pytest.fixture
def gpsd() -> Iterator[GpsdDouble]:
    made = GpsdDouble()
    yield made
    made.stop()


def fix(mode: int = 3) -> dict[str, Any]:
    return {"class": "TPV", "mode": mode, "time": "2023-11-14T22:13:20.000Z"}


def pulse(kind: str, offset_ns: int, **more: Any) -> dict[str, Any]:
    return {
        "class": kind,
        "real_sec": 1_700_000_000,
        "real_nsec": 0,
        "clock_sec": 1_700_000_000 + offset_ns // 10**9,
        "clock_nsec": offset_ns % 10**9,
        **more,
    }


def asked(double: GpsdDouble, clock: ManualClock, *reports: dict[str, Any] | bytes) -> Gpsd:
    """A client that has read all of the reports."""
    client = Gpsd(clock, port=double.port)
    assert client.ask() is None  # connects
    double.say(*reports, {"class": "TPV", "mode": 0, "end": True} if not reports else b"")
    wait_until(lambda: client.ask() is not None or client._reports, what="reports")
    return client


def test_a_pulse_tells_the_offset_to_a_microsecond(gpsd: GpsdDouble) -> None:
    client = asked(gpsd, ManualClock(), fix(), pulse("TOFF", 300_000_000), pulse("PPS", 12_345, precision=-20))
    wait_until(lambda: (client.ask() or fix()) and "PPS" in client._reports)
    quality = client.ask()
    assert quality is not None
    assert (quality.source, quality.offset_ns, quality.synchronised) == ("gpsd_pps", 12_345, True)
    assert quality.uncertainty_ns == 12_345 + 954
    client.close()


def test_a_clock_behind_the_satellites_has_a_negative_offset_and_a_far_one_is_not_kept(gpsd: GpsdDouble) -> None:
    client = asked(gpsd, ManualClock(), fix(), pulse("PPS", -3_000_000_000))
    wait_until(lambda: client.ask() is not None)
    quality = client.ask()
    assert quality is not None
    assert (quality.offset_ns, quality.synchronised, quality.uncertainty_ns) == (-(3 * 10**9), False, 3 * 10**9 + 1000)
    client.close()


def test_serial_time_alone_is_uncertain_by_half_a_second(gpsd: GpsdDouble) -> None:
    client = asked(gpsd, ManualClock(), fix(), pulse("TOFF", 20_000_000))
    wait_until(lambda: client.ask() is not None)
    quality = client.ask()
    assert quality is not None
    assert (quality.source, quality.uncertainty_ns) == ("gpsd_toff", 520_000_000)
    client.close()


def test_without_a_fix_or_with_old_reports_nothing_is_known(gpsd: GpsdDouble) -> None:
    clock = ManualClock()
    client = asked(gpsd, clock, fix(mode=1), pulse("PPS", 0))
    wait_until(lambda: client.ask() is None and "PPS" in client._reports)
    gpsd.say(fix())
    wait_until(lambda: client.ask() is not None)
    clock.advance(11)
    assert client.ask() is None
    client.close()


def test_garbage_and_a_restart_of_gpsd_are_borne(gpsd: GpsdDouble) -> None:
    client = asked(gpsd, ManualClock(), b"no json\n", b'["list"]\n', pulse("PPS", 5, real_sec="x"), fix())
    wait_until(lambda: "TPV" in client._reports or client.ask())
    assert client.ask() is None
    gpsd.close()
    wait_until(lambda: client.ask() is None and client._socket is None, what="the end noticed")
    client.ask()  # connects again
    gpsd.say(fix(), pulse("PPS", 7))
    wait_until(lambda: client.ask() is not None)
    client.close()


def test_the_clock_reader_asks_gpsd_and_the_kernel_where_there_is_none(gpsd: GpsdDouble) -> None:
    clock = ManualClock()
    reader = ClockReader(ClockSettings(source="gpsd", gpsd_port=gpsd.port), clock)
    assert reader.read().source in ("kernel", "unknown")
    gpsd.say(fix(), pulse("PPS", 42))

    def read() -> bool:
        clock.advance(1.5)
        return reader.read().source == "gpsd_pps"

    wait_until(read)
    quality = reader.read()
    assert quality.offset_ns == 42 and quality.boot_id
    reader.close()
    nobody = ClockReader(ClockSettings(source="gpsd", gpsd_port=free_port()), clock)
    assert nobody.read().source in ("kernel", "unknown")
