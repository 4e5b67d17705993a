from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aligner.labels import Purpose, read_labels_file, take_labels
from infomae_stream.cli import app
from infomae_stream.errors import ConfigError, DataError
from storage import query
from storage.lake import Lake

CLASSES = ["walking", "seated", "turning"]
HEADER = "site,node,start_ns,end_ns,label\n"


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_intervals_reach_the_lake_once_and_with_their_purpose(lake: Lake, tmp_path: Path) -> None:
    file = write(tmp_path / "l.csv", "s01,s01-phone,100,200,walking", "s01,s01-phone,200,300,seated")
    summary = take_labels(file, lake, CLASSES, Purpose.train)
    assert (summary.intervals, summary.new, summary.by_label) == (2, 2, {"walking": 1, "seated": 1})
    version = lake.version("labels")
    assert take_labels(file, lake, CLASSES, Purpose.train).new == 0
    assert lake.version("labels") == version
    assert take_labels(file, lake, CLASSES, Purpose.evaluate).new == 2
    assert [i.label for i in query.read_labels(lake, purpose="train")] == ["walking", "seated"]


def test_times_may_be_iso_8601_down_to_the_nanosecond(tmp_path: Path) -> None:
    file = write(
        tmp_path / "l.csv",
        "s01,a,2022-07-11T10:06:18.25Z,2022-07-11T12:06:19.123456789+02:00,walking",
        "s01,a,2022-07-11T10:06:20,2022-07-11 10:06:21,seated",
    )
    first, second = read_labels_file(file, CLASSES, Purpose.train)
    assert (first.start_ns, first.end_ns) == (1_657_533_978_250_000_000, 1_657_533_979_123_456_789)
    assert (second.start_ns, second.end_ns) == (1_657_533_980 * 10**9, 1_657_533_981 * 10**9)


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("s01,a,300,400,walkin", ConfigError, r"l.csv:3: unknown class 'walkin'; did you mean 'walking'\? known"),
        ("s01,a,400,400,walking", DataError, r"l.csv:3: interval \[400, 400\) is empty"),
        ("s01,a,500,400,walking", DataError, r"l.csv:3: interval \[500, 400\)"),
        ("s01,a,150,400,walking", DataError, r"l.csv:3: interval starts at 150, before the one above ended \(200\)"),
        ("s01,a,yesterday,400,walking", DataError, r"l.csv:3: 'yesterday' is not a time"),
        ("s01,A!,300,400,walking", DataError, r"l.csv:3: node 'A!' is not an id"),
        ("s01,a,300,400", DataError, r"l.csv:3: the line has another number of fields"),
        ("s01,a,300,400,walking,x", DataError, r"l.csv:3: the line has another number of fields"),
        ("s01,a,-5,400,walking", DataError, r"l.csv:3: '-5' is not a time"),
    ],
)
def test_a_bad_line_is_named_and_nothing_of_its_file_is_taken(
    lake: Lake, tmp_path: Path, line: str, error: type[Exception], says: str
) -> None:
    file = write(tmp_path / "l.csv", "s01,a,100,200,walking", line)
    with pytest.raises(error, match=says):
        take_labels(file, lake, CLASSES, Purpose.train)
    assert query.read_labels(lake) == []


@pytest.mark.parametrize("header", ["site,node,start_ns,end_ns,class\n", "site,node,start_ns,end_ns\n", "", "a,b\n"])
def test_a_wrong_header_tells_the_right_one(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError, match=r"l.csv:1: .*must be site,node,start_ns,end_ns,label"):
        read_labels_file(write(tmp_path / "l.csv", header=header), CLASSES, Purpose.train)


def test_a_file_that_is_no_text_or_not_there_is_an_error_of_the_tree(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(HEADER.encode() + b"\xff\xfe\x00\n")
    with pytest.raises(DataError, match="not a CSV file"):
        read_labels_file(tmp_path / "b.csv", CLASSES, Purpose.train)
    with pytest.raises(DataError, match="cannot read the file"):
        read_labels_file(tmp_path / "none.csv", CLASSES, Purpose.train)


def test_the_command_counts_what_it_took(tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    config.write_text(
        '[matcher]\nmodalities = ["phone_imu"]\n[align]\nclasses = ["walking", "seated"]\n', encoding="utf-8"
    )
    file = write(tmp_path / "l.csv", "s01,a,100,200,walking")
    command = ["label", "import", str(file), "--config", str(config), "--purpose", "evaluate"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert '"intervals": 1, "new": 1, "by_label": {"walking": 1}' in result.output
    again = CliRunner().invoke(app, command)
    assert "1 intervals (evaluate), 0 new" in again.output
