"""SeedLink over a real socket: resuming after every kind of end, doubles, other servers, garbage."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collectors.chunker import Chunker
from collectors.sources import Position, Reading
from collectors.sources.seedlink import SeedLinkSource
from infomae_stream.clock import NS_PER_S, SystemClock
from tests.brokers import free_port
from tests.seedlink_server import SeedLinkServer
from tests.sensor_files import T0_NS, miniseed_bytes
from tests.sensor_rig import Rig, pieces_of, samples_of
from tests.waiting import PATIENCE_S, wait_until

pytest.importorskip("obspy")


@pytest.fixture
def server() -> Iterator[SeedLinkServer]:
    made = SeedLinkServer(first_sequence=0xFFFFFE)  # the numbers wrap at once
    yield made
    made.close()


def records(first: int, n: int, channel: str = "EHZ") -> bytes:
    """Samples first .. first + n of a channel that counts its samples since T0, 100 a second."""
    return miniseed_bytes(T0_NS + first * 10_000_000, range(first, first + n), channel=channel)


def make(folder: Path, port: int, positions: dict[str, Position] | None = None, **options: Any) -> tuple[Rig, Any]:
    rig = Rig(folder, SystemClock(), positions)
    return rig, rig.make(type="seedlink", station="R1234", port=port, **options)


def collect(source: SeedLinkSource, n_samples: int) -> list[Reading]:
    readings: list[Reading] = []

    def enough() -> bool:
        readings.extend(source.poll(0.05))
        return sum(r.samples_CN.shape[1] for r in readings) >= n_samples

    wait_until(enough, what=f"{n_samples} samples")
    return readings


def connect(source: SeedLinkSource) -> None:
    wait_until(lambda: source.poll(0.05) == [] and source.connected, what="the connection")


def test_records_become_one_stream(tmp_path: Path, server: SeedLinkServer) -> None:
    rig, source = make(tmp_path, server.port)
    connect(source)
    wait_until(lambda: "END" in server.requests)
    server.add(records(0, 3000))
    readings = collect(source, 3000)
    source.close()
    assert server.requests == ["HELLO", "STATION R1234 AM", "SELECT 00EHZ", "DATA", "END"]
    pieces = pieces_of(source, readings)
    assert samples_of(pieces).tolist() == [list(range(3000))]
    assert pieces[0].start_ns == T0_NS and sum(p.hole_ns for p in pieces) == 0 and not rig.refused
    assert source.specs()[0].seed_id == "AM.R1234.00.EHZ"


def test_a_broken_connection_goes_on_with_the_record_after_the_last(tmp_path: Path, server: SeedLinkServer) -> None:
    rig, source = make(tmp_path, server.port)
    connect(source)
    wait_until(lambda: "END" in server.requests)
    server.add(records(0, 1500))
    readings = collect(source, 1500)
    server.hang_up()
    server.add(records(1500, 1500))
    readings += collect(source, 1500)
    source.close()
    assert samples_of(pieces_of(source, readings)).tolist() == [list(range(3000))]
    assert rig.refused == {("", "connection"): 1}


def test_a_restart_goes_on_with_the_sample_after_the_last_accepted_one(tmp_path: Path, server: SeedLinkServer) -> None:
    rig, source = make(tmp_path, server.port)
    connect(source)
    wait_until(lambda: "END" in server.requests)
    server.add(records(0, 3000))
    chunker = Chunker(source.specs()[0])
    pieces = [p for r in collect(source, 3000) for p in chunker.push(r)]
    source.close()
    assert len(pieces) > 20
    for kept in (1, 7, len(pieces)):
        # What was accepted ends in the midst of a record: that one is asked for again.
        rig, source = make(tmp_path, server.port, {"ehz": pieces[kept - 1].position})
        n = sum(p.samples_CN.shape[1] for p in pieces[:kept])
        readings = collect(source, 3000 - n)
        source.close()
        assert [int(x) for r in readings for x in r.samples_CN[0]] == list(range(n, 3000))
        assert not rig.refused


def test_doubled_and_late_records_are_refused_and_counted(tmp_path: Path, server: SeedLinkServer) -> None:
    rig, source = make(tmp_path, server.port)
    connect(source)
    wait_until(lambda: "END" in server.requests)
    for first in (0, 200, 0, 100, 400):
        server.add(records(first, 200))
    readings = collect(source, 600)
    source.close()
    assert samples_of(pieces_of(source, readings)).tolist() == [list(range(600))]
    assert rig.refused == {("ehz", "late"): 400}


def test_what_does_not_belong_is_refused_by_reason(tmp_path: Path, server: SeedLinkServer) -> None:
    rig, source = make(tmp_path, server.port)
    connect(source)
    wait_until(lambda: "END" in server.requests)
    server.add(b"\xff" * 512)
    server.add(records(0, 10, "EHN"))
    server.add(miniseed_bytes(T0_NS, range(10), rate_hz=50.0))
    server.add(records(0, 100))
    readings = collect(source, 100)
    source.close()
    assert len(readings) == 1
    assert rig.refused == {("", "malformed"): 1, ("", "channel"): 1, ("ehz", "rate"): 1}


def test_several_channels_are_streams_of_their_own(tmp_path: Path, server: SeedLinkServer) -> None:
    channels: dict[str, Any] = {"EHZ": {}, "HDF": {"kind": "acoustic"}}
    _, source = make(tmp_path, server.port, channels=channels)
    connect(source)
    wait_until(lambda: "END" in server.requests)
    server.add(records(0, 200) + records(0, 200, "HDF"))
    readings = collect(source, 400)
    source.close()
    assert {r.stream for r in readings} == {"ehz", "hdf"}


def test_a_refused_station_is_told_and_tried_again(tmp_path: Path, server: SeedLinkServer) -> None:
    server.refuses = b"STATION"
    rig, source = make(tmp_path, server.port)
    wait_until(lambda: source.poll(0.05) == [] and rig.refused["", "connection"], what="the refusal")
    assert "'STATION R1234 AM' is answered b'ERROR'" in rig.details[0]
    server.refuses = b""
    connect(source)
    source.close()


def test_another_kind_of_server_is_told_as_such(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                peer.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        rig, source = make(tmp_path, listener.getsockname()[1])
        wait_until(lambda: source.poll(0.05) == [] and rig.refused["", "connection"], what="the words")
        source.close()
        thread.join()
    assert "this is no SeedLink server: b'HTTP/1.1 400" in rig.details[0]


def test_nobody_there_is_told_and_no_reason_to_fail(tmp_path: Path) -> None:
    port = free_port()
    rig, source = make(tmp_path, port)
    wait_until(lambda: source.poll(0.05) == [] and rig.refused["", "connection"], what="the refusal")
    assert f"seedlink 127.0.0.1:{port}: Connection refused" in rig.details[0]
    source.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_obspys_own_client_understands_the_double(server: SeedLinkServer) -> None:
    """So that our client is not tested against its own misunderstanding."""
    from obspy.clients.seedlink.client.seedlinkconnection import SeedLinkConnection

    connection = SeedLinkConnection(timeout=PATIENCE_S)
    connection.set_sl_address(f"127.0.0.1:{server.port}")
    connection.netdly = 1
    connection.add_stream("AM", "R1234", "00EHZ", -1, None)
    server.add(records(0, 3000))
    # hex() of the number after the one given: obspy writes 0xFFFFFF.
    connection.streams[0].seqnum = 0xFFFFFE
    packet = connection.collect()
    trace = packet.get_trace()
    assert trace.id == "AM.R1234.00.EHZ" and trace.stats.starttime.ns > T0_NS
    assert int(trace.data[0]) == (trace.stats.starttime.ns - T0_NS) * 100 // NS_PER_S
    connection.close()
