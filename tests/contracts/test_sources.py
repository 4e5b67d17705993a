"""What every source owes: run over each entry of SOURCES and FORMATS; a module that is not listed fails the suite."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import collectors.recordings
import collectors.sources
from collectors.chunker import Chunker
from collectors.recordings import FORMATS, open_recordings
from collectors.sources import SOURCES, Position, Reading, Source, SourceContext, make_source, source_class
from infomae_stream.clock import ManualClock
from infomae_stream.errors import ConfigError, SourceClosed, SourceError
from infomae_stream.types import Chunk
from tests.recording_files import write_csv, write_excerpt, write_wav

# Not components: the decoder that runs in a process of its own.
NOT_LISTED = {"collectors.recordings.parquet_child"}

# One finite example a source: options, with files made in the folder.
EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "replay": lambda folder: {"path": write_csv(folder / "a.csv", list(range(0, 5000, 10))).name, "speed": 4},
    "synthetic": lambda folder: {"kinds": ["seismic"], "start": "2026-01-01T00:00:00Z", "duration_s": 5, "speed": 4},
}
FILES: dict[str, Callable[[Path], Path]] = {
    ".csv": lambda folder: write_csv(folder / "a.csv", [0, 10, 20]),
    ".wav": lambda folder: write_wav(folder / "a.wav", 800),
    ".parquet": lambda folder: write_excerpt(folder / "a.parquet", {"a": [0, 10, 20]}),
}


def context(folder: Path, clock: ManualClock, position: Position | None = None) -> SourceContext:
    return SourceContext("s01", "s01-node", folder, clock, lambda stream: position)


def make(name: str, folder: Path, clock: ManualClock, position: Position | None = None) -> Source:
    raw = {"type": name, **EXAMPLES[name](folder)}
    return make_source(raw, context(folder, clock, position), where="node.toml", prefix=("nodes", "0", "sources", "0"))


def drain(source: Source, clock: ManualClock, most: int = 10_000) -> list[Reading]:
    readings: list[Reading] = []
    try:
        while len(readings) < most:
            readings += source.poll(0.1)
    except SourceClosed:
        pass
    return readings


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
    assert EXAMPLES.keys() == SOURCES.keys()
    assert FILES.keys() == FORMATS.keys()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_tells_and_loads_its_recordings(suffix: str, tmp_path: Path) -> None:
    recordings = open_recordings(FILES[suffix](tmp_path))
    assert recordings.names == ("a",)
    d = recordings.description
    assert len(d.channels) == len(d.units) == len(d.sensitivity) and d.rate_hz > 0
    loaded = recordings.load("a")
    assert loaded.samples_CN.shape[0] == len(d.channels)
    assert loaded.times_ns is None or loaded.times_ns.shape == (loaded.samples_CN.shape[1],)
    with pytest.raises(KeyError):
        recordings.load("b")
    recordings.close()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_refuses_garbage_with_the_file_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(SourceError, match="garbage"):
        open_recordings(path).load("garbage")


@pytest.mark.parametrize("name", SOURCES)
def test_an_unknown_option_is_refused_with_its_dotted_key(name: str, tmp_path: Path) -> None:
    raw = {"type": name, **EXAMPLES[name](tmp_path), "sped": 2}
    with pytest.raises(ConfigError, match=r"nodes\.0\.sources\.0\.sped: unknown key; did you mean 'speed'"):
        make_source(raw, context(tmp_path, ManualClock()), where="node.toml", prefix=("nodes", "0", "sources", "0"))


def test_an_unknown_source_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nodes\.0\.sources\.0\.type: 'repaly' is no source; known: replay, synth"):
        make_source(
            {"type": "repaly"},
            context(tmp_path, ManualClock()),
            where="node.toml",
            prefix=("nodes", "0", "sources", "0"),
        )


@pytest.mark.parametrize("name", SOURCES)
def test_readings_fit_the_spec_and_make_valid_chunks(name: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = make(name, tmp_path, clock)
    assert source_class(name) is type(source)
    readings = drain(source, clock)
    (spec,) = source.specs()
    _, pieces = samples(source, readings)
    for p in pieces:
        from infomae_stream.types import ClockQuality

        Chunk(spec, "e", 0, p.start_ns, p.samples_CN, ClockQuality("t"), p.times_ns)
    source.close()


@pytest.mark.parametrize("name", SOURCES)
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


@pytest.mark.parametrize("name", SOURCES)
def test_closed_is_said_after_the_last_reading(name: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = make(name, tmp_path, clock)
    readings = drain(source, clock)
    assert readings
    with pytest.raises(SourceClosed):
        source.poll(0.0)
    source.close()


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_goes_on_after_the_accepted_position(name: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = make(name, tmp_path, clock)
    whole, pieces = samples(source, drain(source, clock))
    source.close()
    assert len(pieces) > 3
    for k in (0, 2, len(pieces) - 1):
        position = pieces[k].position
        again = make(name, tmp_path, ManualClock(), position)
        readings = drain(again, clock)
        before = sum(p.samples_CN.shape[1] for p in pieces[: k + 1])
        if k == len(pieces) - 1:
            assert readings == []
        else:
            rest, _ = samples(again, readings, position)
            np.testing.assert_array_equal(rest, whole[:, before:])
        again.close()
