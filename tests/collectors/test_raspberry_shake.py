"""Raspberry Shake's datacast over a real UDP socket: loss, order, doubles, strangers, garbage, a full buffer."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.sensing.shake_simulator import ShakeSimulator
from collectors.sources import Reading
from collectors.sources.raspberry_shake import RaspberryShakeSource, format_datagram, parse_datagram
from infomae_stream.clock import NS_PER_S, ManualClock, SystemClock
from infomae_stream.errors import ConfigError, SourceError
from tests.brokers import free_port
from tests.sensor_rig import Rig, pieces_of, samples_of
from tests.waiting import send_datagram, wait_until

T0 = 1_582_315_130_292_000_000
BLOCK = 250_000_000


class Shake:
    """The source on a free loopback port, and what sends to it."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.clock = ManualClock(T0 + BLOCK)
        self.rig = Rig(folder, self.clock)
        raw = {"type": "raspberry_shake", "station": "R1234", "port": 0, **options}
        self.source: RaspberryShakeSource = self.rig.make(**raw)

    def send(self, *datagrams: bytes) -> list[Reading]:
        for datagram in datagrams:
            send_datagram(datagram, self.source._socket)
        return list(self.source.poll(0.0))

    def close(self) -> None:
        self.source.close()


@pytest.fixture
def make_shake(tmp_path: Path) -> Iterator[Callable[..., Shake]]:
    with contextlib.ExitStack() as stack:

        def make(**options: object) -> Shake:
            made = Shake(tmp_path, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def shake(make_shake: Callable[..., Shake]) -> Shake:
    return make_shake()


def block(k: int, channel: str = "EHZ", jitter_ns: int = 0) -> bytes:
    """The k-th datagram: sample i of the stream counts i."""
    return format_datagram(channel, T0 + k * BLOCK + jitter_ns, range(25 * k, 25 * (k + 1)))


def test_the_documented_datagram_is_read_to_the_millisecond() -> None:
    datagram = parse_datagram(b"{'EHZ', 1582315130.292, 14168, 14927, -16112}")
    assert (datagram.channel, datagram.start_ns) == ("EHZ", T0)
    assert datagram.samples_N.tolist() == [14168, 14927, -16112]


@given(st.integers(0, 2**32 * 1000 - 1), st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=100))
def test_what_is_formatted_is_read_back(ms: int, counts: list[int]) -> None:
    datagram = parse_datagram(format_datagram("HDF", ms * 1_000_000, counts))
    assert (datagram.channel, datagram.start_ns) == ("HDF", ms * 1_000_000)
    assert datagram.samples_N.tolist() == counts


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{'EHZ', 1582315130.292}",
        b"{'EHZ', 1582315130.292, }",
        b"{'EHZ', nan, 1}",
        b"{'EHZ', 1582315130.292, 1_0}",
        b"{'EHZ', 1582315130.292, 1.5}",
        b"{'EHZ', -1, 1}",
        b"{'ehz', 1582315130.292, 1}",
        b"{'EHZ', 1582315130.292, 2147483648}",
        b"{'EHZ', 1582315130.292, 1} and more",
        "{'EHZ', 1582315130.292, ٣}".encode(),
        b"\xff" * 1400,
        b"{'EHZ', 1582315130.292" + b", 1" * 10_001 + b"}",
    ],
)
def test_a_malformed_datagram_is_refused_counted_and_nothing_else_happens(shake: Shake, data: bytes) -> None:
    with pytest.raises(SourceError):
        parse_datagram(data)
    assert shake.send(data) == []
    assert shake.rig.refused == {("", "malformed"): 1}
    assert len(shake.send(block(0))) == 1


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with contextlib.suppress(SourceError):
        parse_datagram(b"{'EHZ', " + data)


def test_contiguous_datagrams_become_one_stream_with_exact_samples(shake: Shake) -> None:
    readings = [r for k in range(20) for r in shake.send(block(k))]
    pieces = pieces_of(shake.source, readings)
    assert samples_of(pieces).tolist() == [list(range(500))]
    assert samples_of(pieces).dtype == np.int32
    assert [p.hole_ns for p in pieces] == [0] * len(pieces)
    assert all(p.times_ns is None for p in pieces)
    assert not shake.rig.refused
    (spec,) = shake.source.specs()
    assert (spec.seed_id, spec.id.stream, spec.units) == ("AM.R1234.00.EHZ", "ehz", ("{count}",))


def test_stamps_that_jitter_by_milliseconds_make_no_gaps_and_a_smooth_clock(shake: Shake) -> None:
    rng = np.random.default_rng(1)
    readings = [r for k in range(400) for r in shake.send(block(k, jitter_ns=int(rng.integers(-2, 3)) * 1_000_000))]
    pieces = pieces_of(shake.source, readings)
    assert len(pieces) <= 102 and sum(p.hole_ns for p in pieces) == 0
    error_ns = np.array([r.start_ns - (T0 + k * BLOCK) for k, r in enumerate(readings)])[50:]
    assert np.std(error_ns) < 600_000  # the stamps' own is 1.4 ms


def test_a_digitizer_that_runs_fast_is_followed(make_shake: Callable[..., Shake]) -> None:
    made = make_shake()
    step = round(BLOCK * (1 - 200e-6))
    readings = [r for k in range(2000) for r in made.send(format_datagram("EHZ", T0 + k * step, range(25)))]
    pieces = pieces_of(made.source, readings)
    assert sum(p.hole_ns for p in pieces) == 0 and not made.rig.refused
    assert abs(readings[-1].start_ns - (T0 + 1999 * step)) < 2_000_000


def test_a_lost_datagram_is_a_hole_of_its_length(shake: Shake) -> None:
    readings = [r for k in range(12) if k != 5 for r in shake.send(block(k))]
    shake.clock.advance(1.0)
    readings += shake.source.poll(0.0)
    pieces = pieces_of(shake.source, readings)
    assert sum(p.hole_ns for p in pieces) == pytest.approx(BLOCK + 10_000_000, abs=1_000_000)
    assert samples_of(pieces).shape[1] == 11 * 25


def test_datagrams_that_overtook_each_other_come_out_in_order(shake: Shake) -> None:
    readings = [r for k in (0, 1, 3, 2, 4, 7, 6, 5, 8) for r in shake.send(block(k))]
    pieces = pieces_of(shake.source, readings)
    assert samples_of(pieces).tolist() == [list(range(225))]
    assert not shake.rig.refused and sum(p.hole_ns for p in pieces) == 0


def test_a_datagram_does_not_wait_for_ever_for_a_lost_one(shake: Shake) -> None:
    readings = shake.send(block(0), block(2))
    assert len(readings) == 1
    shake.clock.advance(0.6)
    assert len(shake.source.poll(0.0)) == 1


def test_doubled_and_late_datagrams_are_refused_and_counted(shake: Shake) -> None:
    readings = shake.send(block(0), block(1), block(1), block(0), block(2))
    assert [int(r.samples_CN[0, 0]) for r in readings] == [0, 25, 50]
    assert shake.rig.refused == {("ehz", "late"): 2}


def test_a_shake_whose_clock_is_set_back_by_hours_goes_on(shake: Shake) -> None:
    hours = 3 * 3600 * NS_PER_S
    readings = shake.send(block(0), block(1, jitter_ns=-hours), block(2, jitter_ns=-hours))
    assert len(readings) == 3 and not shake.rig.refused
    assert [r.start_ns for r in readings] == [T0, T0 + BLOCK - hours, T0 + 2 * BLOCK - hours]


def test_channels_are_streams_of_their_own_and_unknown_ones_are_refused(make_shake: Callable[..., Shake]) -> None:
    channels = {
        "EHZ": {"sensitivity": 399650000.0, "unit": "m/s"},
        "HDF": {"kind": "acoustic", "sensitivity": 56000.0, "unit": "Pa"},
    }
    made = make_shake(channels=channels)
    readings = made.send(block(0), block(0, "HDF"), block(0, "ENZ"))
    assert [r.stream for r in readings] == ["ehz", "hdf"]
    assert made.rig.refused == {("", "channel"): 1}
    assert [(s.kind, s.units[0]) for s in made.source.specs()] == [("seismic", "m/s"), ("acoustic", "Pa")]


def test_a_sender_that_is_not_listed_is_refused(make_shake: Callable[..., Shake]) -> None:
    made = make_shake(senders=["192.0.2.0/24"])
    assert made.send(block(0)) == []
    assert made.rig.refused == {("", "sender"): 1}


def test_listening_beyond_loopback_needs_a_list_of_senders(make_shake: Callable[..., Shake]) -> None:
    with pytest.raises(ConfigError, match=r"say in `senders` which addresses may send"):
        make_shake(host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"sources\.0\.senders"):
        make_shake(host="0.0.0.0", senders=["shake.local"])
    make_shake(host="0.0.0.0", senders=["127.0.0.1"])


def test_a_taken_port_is_told_with_the_fix(shake: Shake, make_shake: Callable[..., Shake]) -> None:
    with pytest.raises(SourceError, match=r"cannot listen: Address already in use; stop what else listens there"):
        make_shake(port=shake.source.address[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's count of drops is Linux's")
def test_what_the_kernel_drops_is_counted(make_shake: Callable[..., Shake]) -> None:
    made = make_shake(receive_buffer_bytes=4096)
    for k in range(200):
        send_datagram(block(k), made.source._socket)
    got = made.source.poll(0.0)
    # The kernel tells with the next datagram that finds room.
    got += made.send(block(200))
    dropped = made.rig.refused["", "buffer_full"]
    assert dropped > 0
    made.clock.advance(10)
    got += made.source.poll(0.0)
    assert len(got) + dropped == 201


def test_a_receive_buffer_beyond_the_kernels_limit_is_told(
    make_shake: Callable[..., Shake], caplog: pytest.LogCaptureFixture
) -> None:
    make_shake(receive_buffer_bytes=2_000_000_000)
    (told,) = [r for r in caplog.records if r.message == "receive_buffer_small"]
    assert told.fields["given_bytes"] < 2_000_000_000 and told.fields["fix"] == "sysctl net.core.rmem_max"  # type: ignore[attr-defined]


def test_every_chunk_tells_the_uncertainty_of_the_shakes_own_clock(shake: Shake) -> None:
    (reading,) = shake.send(block(0))
    assert reading.clock is not None
    assert (reading.clock.uncertainty_ns, reading.clock.synchronised) == (10_000_000, True)
    shake.clock.step(-30)  # now the datagrams come from the future
    (reading,) = shake.send(block(1))
    assert reading.clock is not None
    assert not reading.clock.synchronised and reading.clock.uncertainty_ns == pytest.approx(30e9, rel=0.02)


def test_the_simulator_sends_what_a_shake_sends(make_shake: Callable[..., Shake]) -> None:
    made = make_shake()
    simulator = ShakeSimulator(made.clock, seed=3, loss=0.2, drift_ppm=50)
    readings, sent = [], 0
    for _ in range(400):
        made.clock.advance(0.25)
        datagrams = list(simulator.due())
        sent += len(datagrams)
        readings += made.send(*datagrams)
    made.clock.advance(5)
    readings += made.source.poll(0.0)
    assert 280 < sent < 360 and len(readings) == sent and not made.rig.refused
    holes = [p.hole_ns / NS_PER_S for p in pieces_of(made.source, readings) if p.hole_ns]
    # It begins at the whole second: two datagrams are due at once. A hole reaches from sample to sample.
    assert sum(holes) == pytest.approx((402 - sent) * 0.25 + len(holes) * 0.01, abs=0.3)


@pytest.mark.slow
def test_the_command_feeds_a_source_through_the_network(tmp_path: Path) -> None:
    port = free_port()
    rig = Rig(tmp_path, SystemClock())
    source = rig.make(type="raspberry_shake", station="R1234", port=port)
    command = [sys.executable, "-m", "infomae_stream.cli", "sensor", "simulate-shake", "--to", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    readings: list[Reading] = []
    try:
        wait_until(lambda: readings.extend(source.poll(0.1)) or len(readings) >= 8, what="datagrams")
    finally:
        process.kill()
        process.wait()
        source.close()
    pieces = pieces_of(source, readings)
    assert sum(p.hole_ns for p in pieces) == 0 and not rig.refused
