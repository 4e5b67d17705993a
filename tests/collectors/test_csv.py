"""The csv source: times in every unit, zones, columns by name and number, rows that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infomae_stream.errors import ConfigError, SourceError
from tests.sensor_files import T0_NS, T0_S
from tests.sensor_rig import Rig, drain, pieces_of, samples_of

X = {"column": "x", "channel": "x", "unit": "V"}


def read(folder: Path, text: str, time: dict[str, Any] | None = None, **options: Any) -> tuple[Rig, list[int], Any]:
    """Rig, times of all samples, samples."""
    (folder / "log.csv").write_bytes(text.encode())
    rig = Rig(folder)
    given = {"columns": [X], "rate_hz": 1, "kind": "seismic", "speed": 0, **options}
    source = rig.make(type="csv", path="log.csv", **({"time": time} if time else {}), **given)
    readings = drain(source)
    times = [int(t) for r in readings if r.times_ns is not None for t in r.times_ns]
    return rig, times, samples_of(pieces_of(source, readings))


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (f"{T0_S}.123456789", {"unit": "s"}),
        (f"{T0_S}123.456789", {"unit": "ms"}),
        (f"{T0_S}123456.789", {"unit": "us"}),
        (f"{T0_S}123456789", {"unit": "ns"}),
    ],
)
def test_times_in_every_unit_are_exact(tmp_path: Path, text: str, time: dict[str, Any]) -> None:
    _, times, samples_CN = read(tmp_path, f"t,x\n{text},0.5\n", {"column": "t", **time})
    assert times == [T0_NS + 123_456_789]
    assert samples_CN.tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2022-03-18T11:00:27.250Z", {"unit": "iso"}),
        ("2022-03-18T12:00:27.250+01:00", {"unit": "iso"}),
        ("2022-03-18 12:00:27.250", {"unit": "iso", "time_zone": "Europe/Berlin"}),
        ("18.03.2022 12:00:27.25", {"unit": "%d.%m.%Y %H:%M:%S.%f", "time_zone": "Europe/Berlin"}),
        ("18/03/22 11:00:27.250", {"unit": "%d/%m/%y %H:%M:%S.%f"}),
    ],
)
def test_written_times_and_their_zones(tmp_path: Path, text: str, time: dict[str, Any]) -> None:
    _, times, _ = read(tmp_path, f"t,x\n{text},1\n", {"column": "t", **time})
    assert times == [T0_NS + 250_000_000]


def test_columns_by_number_another_delimiter_and_a_decimal_comma(tmp_path: Path) -> None:
    columns = [
        {"column": 2, "channel": "x", "unit": "m/s2", "sensitivity": 1000},
        {"column": 1, "channel": "y", "unit": "m/s2"},
    ]
    _, times, samples_CN = read(
        tmp_path,
        f"a logger\nsays\n{T0_S},5;1,5;2,5\n{T0_S + 1};1,25;-2\n",
        {"column": 0},
        columns=columns,
        header=False,
        skip_lines=2,
        delimiter=";",
        decimal=",",
    )
    assert times == [T0_NS + 500_000_000, T0_NS + 10**9]
    np.testing.assert_array_equal(samples_CN, [[2.5, -2], [1.5, 1.25]])


def test_rows_without_times_follow_each_other_at_the_rate(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("x\n1\n2\n3\n", encoding="utf-8")
    options: dict[str, Any] = {"path": "log.csv", "columns": [X], "rate_hz": 10, "kind": "seismic", "speed": 0}
    with pytest.raises(SourceError, match="set the option start"):
        Rig(tmp_path).make(type="csv", **options)
    source = Rig(tmp_path).make(type="csv", start="2022-03-18T11:00:27Z", **options)
    (piece,) = pieces_of(source, drain(source))
    assert (piece.start_ns, piece.times_ns, piece.samples_CN.tolist()) == (T0_NS, None, [[1, 2, 3]])


def test_relative_times_count_from_the_start(tmp_path: Path) -> None:
    _, times, _ = read(
        tmp_path, "t,x\n100,1\n101.5,2\n", {"column": "t", "relative": True}, start="2022-03-18T11:00:27Z"
    )
    assert times == [T0_NS, T0_NS + 1_500_000_000]


def test_bad_rows_are_counted_and_the_first_is_told_by_its_line(tmp_path: Path) -> None:
    rows = ["t,x", f"{T0_S},1", "", f"{T0_S + 1},", f"{T0_S + 2}", "when,2", "nan,2", "1e300,2", f"{T0_S + 3},inf"]
    rows += [f"{T0_S + 4},5", *(f"{T0_S + 5 + i},{i}" for i in range(6))]
    rig, times, _ = read(tmp_path, "\r\n".join(rows), {"column": "t"})
    assert len(times) == 8
    assert rig.refused == {("csv", "row"): 6}
    assert "log: line 4: could not convert string to float" in rig.details[0]


def test_bytes_of_another_encoding_cost_their_row_only(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(f"t,x\n{T0_S},1\n{T0_S},\xb5\n{T0_S + 1},2\n".encode("latin1"))
    rig = Rig(tmp_path)
    source = rig.make(type="csv", path="log.csv", time={"column": "t"}, columns=[X], rate_hz=1, kind="seismic", speed=0)
    assert samples_of(pieces_of(source, drain(source))).tolist() == [[1, 2]]
    assert rig.refused["csv", "row"] == 1


def test_a_column_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"log\.csv: there is no column 'x'; there are: t, y"):
        read(tmp_path, "t,y\n1,2\n", {"column": "t"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": {"column": "t", "unit": "minutes"}}, r"time\.unit: .*none of s, ms, us, ns, iso"),
        ({"time": {"column": "t", "time_zone": "Berlin"}}, r"time\.time_zone: .*write one like Europe/Berlin"),
        ({"columns": []}, r"columns: "),
        ({"header": False}, "without a header a column is a number"),
        ({"rate_hz": 0}, r"rate_hz: "),
    ],
)
def test_a_wrong_map_is_refused_by_its_key(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"columns": [X], "rate_hz": 1, "kind": "seismic", "time": {"column": "t"}, **options}
    with pytest.raises(ConfigError, match=message):
        Rig(tmp_path).make(type="csv", path="log.csv", **given)
