"""What every source owes: run over each entry of SOURCES and FORMATS; a module that is not listed fails the suite.

A source that ends (a file, a scene) has a finite example; a live one has a rig in tests/live_sensors.py that feeds it.
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import collectors.recordings
import collectors.sources
from collectors.chunker import Chunker
from collectors.recordings import FORMATS, SUFFIXES, open_recordings
from collectors.sources import SOURCES, Position, Reading, Source, check_options, make_source, source_class
from infomae_stream.clock import ManualClock
from infomae_stream.errors import ConfigError, SourceClosed, SourceError
from tests.brokers import wait_until
from tests.live_sensors import LIVE, LiveSensor
from tests.recording_files import write_csv, write_excerpt, write_wav
from tests.sensor_files import (
    T0_S,
    forth_text,
    metamotion_zip,
    mobifall_zip,
    sac_bytes,
    us_tmd_text,
    write_flac,
    write_miniseed,
)
from tests.sensor_rig import Rig, drain, pieces_of

ROOT = Path(__file__).resolve().parents[2]
# Not components: the decoder that runs in a process of its own.
NOT_LISTED = {"collectors.recordings.parquet_child"}


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def foreign_csv(folder: Path) -> dict[str, Any]:
    """500 rows, 100 a second."""
    path = write(folder / "log.csv", "t,x\n" + "".join(f"{T0_S + i / 100:.2f},{i}\n" for i in range(500)))
    columns = [{"column": "x", "channel": "x", "unit": "V"}]
    return {"path": path.name, "kind": "seismic", "rate_hz": 100, "time": {"column": "t"}, "columns": columns}


# One finite example a source: options, with files made in the folder.
EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "csv": lambda folder: {**foreign_csv(folder), "speed": 4},
    "replay": lambda folder: {"path": write_csv(folder / "a.csv", list(range(0, 5000, 10))).name, "speed": 4},
    "synthetic": lambda folder: {"kinds": ["seismic"], "start": "2026-01-01T00:00:00Z", "duration_s": 5, "speed": 4},
}
# Real brokers are slow.
LIVE_CASES = [pytest.param(name, marks=pytest.mark.slow if name == "mqtt" else ()) for name in LIVE]
# One file a format, and the part that is asked for.
FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parquet": (lambda folder: write_excerpt(folder / "a.parquet", {"a": [0, 10, 20]}), ""),
    "geotec": (lambda folder: write_csv(folder / "a.csv", [0, 10, 20]), ""),
    "mobifall": (lambda folder: mobifall_zip(folder / "a.zip"), "gyro"),
    "forth": (lambda folder: write(folder / "a.csv", forth_text([0, 20, 40])), ""),
    "metamotion": (lambda folder: metamotion_zip(folder / "a.zip"), "accelerometer"),
    "us_tmd": (lambda folder: write(folder / f"U01_Bus_{T0_S}000.csv", us_tmd_text()), "accelerometer"),
    "wav": (lambda folder: write_wav(folder / "a.wav", 800), ""),
    "flac": (lambda folder: write_flac(folder / "a.flac", 800), ""),
    "sac": (lambda folder: write(folder / "a.sac", sac_bytes(range(100))), ""),
    "miniseed": (lambda folder: write_miniseed(folder / "a.mseed", [(0, range(1000))]), ""),
}


def make(name: str, folder: Path, clock: ManualClock, position: Position | None = None) -> Source:
    rig = Rig(folder, clock)
    raw = EXAMPLES[name](folder)
    if position is None:
        return rig.make(type=name, **raw)
    with_stream = {s.id.stream: position for s in rig.make(type=name, **raw).specs()}
    return Rig(folder, clock, with_stream).make(type=name, **raw)


@pytest.fixture
def live(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveSensor]:
    sensor = LIVE[request.param](tmp_path)
    yield sensor
    sensor.close()


def samples(source: Source, readings: list[Reading], position: Position | None = None) -> Any:
    (spec,) = source.specs()
    chunker = Chunker(spec, position=position)
    pieces = [p for r in readings for p in chunker.push(r)] + chunker.flush()
    return np.concatenate([p.samples_CN for p in pieces], axis=1), pieces


@pytest.mark.parametrize(
    ("package", "table"), [(collectors.sources, SOURCES), (collectors.recordings, FORMATS)], ids=["sources", "formats"]
)
def test_every_module_of_the_folder_is_listed(package: Any, table: dict[str, str]) -> None:
    modules = {f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)}
    assert modules - NOT_LISTED == {entry.split(":")[0] for entry in table.values()}


def test_every_entry_has_an_example() -> None:
    assert EXAMPLES.keys() | LIVE.keys() == SOURCES.keys()
    assert not EXAMPLES.keys() & LIVE.keys()
    assert FILES.keys() == FORMATS.keys()
    assert {name for names in SUFFIXES.values() for name in names} == FORMATS.keys()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_tells_and_loads_its_recordings(format: str, tmp_path: Path) -> None:
    made, part = FILES[format]
    path = made(tmp_path)
    recordings = open_recordings(path, part=part)
    assert type(recordings).__module__ == FORMATS[format].split(":")[0], "found by its suffix and its make"
    d = recordings.description
    assert len(d.channels) == len(d.units) == len(d.sensitivity) and d.rate_hz > 0
    loaded = recordings.load(recordings.names[0])
    assert loaded.samples_CN.shape[0] == len(d.channels) and loaded.samples_CN.shape[1] > 0
    assert loaded.times_ns is None or loaded.times_ns.shape == (loaded.samples_CN.shape[1],)
    assert (loaded.start_ns is not None) == d.has_time
    with pytest.raises(KeyError):
        recordings.load("b")
    recordings.close()
    with pytest.raises(SourceError, match="part"):
        open_recordings(path, format, "no such part")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("garbage", [bytes(range(256)) * 10, b"", b"0,0\n" * 50, b"PK\x03\x04" + bytes(100)])
def test_every_format_refuses_garbage_with_the_file_name(format: str, garbage: bytes, tmp_path: Path) -> None:
    made, part = FILES[format]
    path = made(tmp_path)
    path.write_bytes(garbage)

    def read() -> None:
        recordings = open_recordings(path, format, part)
        recordings.load(recordings.names[0])

    with pytest.raises(SourceError, match=path.stem):
        read()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_unknown_option_is_refused_with_its_dotted_key(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nodes\.0\.sources\.0\.sped: unknown key; did you mean 'speed'"):
        Rig(tmp_path).make(type=name, **EXAMPLES[name](tmp_path), sped=2)


@pytest.mark.parametrize("live", LIVE_CASES, indirect=True)
def test_an_unknown_option_of_a_live_source_is_refused_before_anything_is_opened(live: LiveSensor) -> None:
    with pytest.raises(ConfigError, match=r"nodes\.0\.sources\.0\.wrong_key: unknown key"):
        live.rig.make(type=live.name, **live.options, wrong_key=2)


def test_an_unknown_source_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nodes\.0\.sources\.0\.type: 'repaly' is no source; known: alsa, .*synthetic"
    ):
        make_source(
            {"type": "repaly"},
            Rig(tmp_path).context,
            where="node.toml",
            prefix=("nodes", "0", "sources", "0"),
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_readings_fit_the_spec_and_make_valid_chunks(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path, ManualClock())
    assert source_class(name) is type(source)
    readings = drain(source)
    assert pieces_of(source, readings)
    source.close()


@pytest.mark.parametrize("live", LIVE_CASES, indirect=True)
def test_readings_of_a_live_source_fit_its_specs_and_make_valid_chunks(live: LiveSensor) -> None:
    source = live.make()
    assert source_class(live.name) is type(source)
    specs = list(source.specs())
    assert len({s.id.stream for s in specs}) == len(specs) > 0
    assert list(source.poll(0.0)) == []
    readings: list[Reading] = []

    def fed() -> bool:
        live.feed()
        readings.extend(source.poll(0.05))
        return len({r.stream for r in readings}) == len(specs) and sum(r.samples_CN.shape[1] for r in readings) > 200

    wait_until(fed, what="readings")
    for spec in specs:
        pieces = pieces_of(source, readings, spec.id.stream)
        assert pieces
        assert all(p.samples_CN.shape[0] == len(spec.channels) for p in pieces)
        assert sum(p.hole_ns for p in pieces) == 0
    for r in readings:
        assert abs(r.start_ns - live.rig.clock.now_ns()) < 60 * 10**9, "live data are of now"
    assert list(source.specs()) == specs
    assert not live.rig.refused
    source.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_poll_gives_nothing_before_its_time(name: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = make(name, tmp_path, clock)
    total = sum(r.samples_CN.shape[1] for r in source.poll(0.0))
    assert total <= 1
    clock.advance(0.5)  # 2 s of data at speed 4
    got = sum(r.samples_CN.shape[1] for r in source.poll(0.0))
    assert 150 <= got + total <= 210
    assert list(source.poll(0.0)) == []
    source.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_closed_is_said_after_the_last_reading(name: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = make(name, tmp_path, clock)
    readings = drain(source)
    assert readings
    with pytest.raises(SourceClosed):
        source.poll(0.0)
    source.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_source_goes_on_after_the_accepted_position(name: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = make(name, tmp_path, clock)
    whole, pieces = samples(source, drain(source))
    source.close()
    assert len(pieces) > 3
    for k in (0, 2, len(pieces) - 1):
        position = pieces[k].position
        again = make(name, tmp_path, ManualClock(), position)
        readings = drain(again)
        before = sum(p.samples_CN.shape[1] for p in pieces[: k + 1])
        if k == len(pieces) - 1:
            assert readings == []
        else:
            rest, _ = samples(again, readings, position)
            np.testing.assert_array_equal(rest, whole[:, before:])
        again.close()


DOCUMENTED = re.findall(
    r"```toml\n(\[\[nodes\.sources\]\]\n.*?)```", (ROOT / "docs" / "sensors.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("text", DOCUMENTED, ids=[re.findall('type = "(.*?)"', text)[0] for text in DOCUMENTED])
def test_the_documented_tables_are_accepted(text: str) -> None:
    (raw,) = tomllib.loads(text)["nodes"]["sources"]
    options, _ = check_options(raw, where="docs/sensors.md", prefix=("nodes", "0", "sources", "0"))
    assert options


def test_every_source_and_every_format_is_documented() -> None:
    text = (ROOT / "docs" / "sensors.md").read_text(encoding="utf-8")
    documented = {re.findall('type = "(.*?)"', block)[0] for block in DOCUMENTED}
    assert documented | {"synthetic"} == set(SOURCES)
    assert all(f"`{suffix}`" in text for suffix in SUFFIXES)
