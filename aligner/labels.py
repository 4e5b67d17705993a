"""`label import`: labelled intervals from a CSV file into the lake. All of a file or nothing of it.

Columns: site, node, start_ns, end_ns, label. Times are integer nanoseconds UTC or ISO 8601 (with a zone, or UTC).
Within one site and node the intervals rise and do not overlap. Purpose "train" labels may be learned from;
"evaluate" labels only judge.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from infomae_stream.clock import NS_PER_S
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError, DataError
from infomae_stream.hub_config import HubConfig
from infomae_stream.types import check_id
from storage.lake import Lake
from storage.learning_tables import append_labels
from storage.rows import LabelInterval

COLUMNS: Final = ("site", "node", "start_ns", "end_ns", "label")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ISO_FRACTION: Final = re.compile(r"[.,]([0-9]{1,9})")


class Purpose(StrEnum):
    train = "train"
    evaluate = "evaluate"


@dataclass(frozen=True)
class ImportSummary:
    """Counts of one import: intervals of the file, those that the lake did not have yet, and intervals a class."""

    intervals: int
    new: int
    by_label: dict[str, int]


def import_labels(
    file: Annotated[Path, typer.Argument(help="CSV: site,node,start_ns,end_ns,label")],
    config: Annotated[Path, typer.Option("--config", help="The hub's TOML file.")],
    purpose: Annotated[Purpose, typer.Option(help="train: learned from; evaluate: only judges.")] = Purpose.train,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Take labelled intervals from a CSV file into the lake; the same file again changes nothing."""
    settings = load_config(config, HubConfig)
    summary = take_labels(file, Lake(settings.lake_path), settings.align.classes, purpose)
    if as_json:
        typer.echo(json.dumps({"file": str(file), "purpose": purpose.value, **summary.__dict__}))
        return
    typer.echo(f"{file}: {summary.intervals} intervals ({purpose.value}), {summary.new} new")
    for label, count in sorted(summary.by_label.items()):
        typer.echo(f"  {label:<24}{count:>8}")


def take_labels(path: Path, lake: Lake, classes: Sequence[str], purpose: Purpose) -> ImportSummary:
    """Read `path` and commit its intervals at once. Raises DataError, ConfigError (unknown class), LakeError."""
    intervals = read_labels_file(path, classes, purpose)
    new = append_labels(lake, intervals)
    return ImportSummary(len(intervals), new, dict(Counter(i.label for i in intervals)))


def read_labels_file(path: Path, classes: Sequence[str], purpose: Purpose) -> list[LabelInterval]:
    """The intervals of a file. Raises ConfigError for a class that the configuration does not know, DataError else.

    The message names the file, the line and what is allowed there.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f, strict=True)
            _check_header(reader.fieldnames, path)
            intervals: list[LabelInterval] = []
            newest: dict[tuple[str, str], LabelInterval] = {}
            for row in reader:
                where = f"{path}:{reader.line_num}"
                interval = _interval(row, classes, purpose, where)
                last = newest.get((interval.site, interval.node))
                if last is not None and interval.start_ns < last.end_ns:
                    raise DataError(
                        f"interval starts at {interval.start_ns}, before the one above ended ({last.end_ns})",
                        where=where,
                        fix=f"sort the intervals of {interval.site}/{interval.node} by time and cut overlaps",
                    )
                newest[interval.site, interval.node] = interval
                intervals.append(interval)
    except OSError as e:
        raise DataError(f"cannot read the file: {e.strerror}", where=str(path)) from e
    except (csv.Error, UnicodeDecodeError) as e:
        raise DataError(f"not a CSV file in UTF-8: {e}", where=str(path)) from e
    return intervals


def _check_header(names: Sequence[str] | None, path: Path) -> None:
    have = list(names or [])
    unknown = [name for name in have if name not in COLUMNS]
    missing = [name for name in COLUMNS if name not in have]
    if unknown or missing or len(have) != len(COLUMNS):
        raise DataError(
            f"columns {have}: unknown {unknown}, missing {missing}",
            where=f"{path}:1",
            fix=f"the first line must be {','.join(COLUMNS)}",
        )


def _interval(row: dict[str, str], classes: Sequence[str], purpose: Purpose, where: str) -> LabelInterval:
    if None in row or None in row.values():
        raise DataError("the line has another number of fields than the header", where=where)
    label = row["label"].strip()
    if label not in classes:
        near = difflib.get_close_matches(label, classes, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"unknown class {label!r}", where=where, fix=f"{hint}known (align.classes): {', '.join(classes)}"
        )
    try:
        site, node = check_id(row["site"].strip(), "site"), check_id(row["node"].strip(), "node")
        start_ns, end_ns = _time_ns(row["start_ns"]), _time_ns(row["end_ns"])
    except DataError as e:
        raise DataError(e.what, where=where, fix=e.fix) from e
    if not 0 <= start_ns < end_ns < 2**62:
        raise DataError(
            f"interval [{start_ns}, {end_ns}) is empty or out of range", where=where, fix="end after the start"
        )
    return LabelInterval(site, node, start_ns, end_ns, label, purpose.value)


def _time_ns(text: str) -> int:
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,19}", text):
        return int(text)
    fraction = _ISO_FRACTION.search(text)
    try:  # the fraction apart: datetime keeps microseconds only
        moment = datetime.fromisoformat(_ISO_FRACTION.sub("", text, count=1))
    except ValueError:
        raise DataError(
            f"{text[:60]!r} is not a time", fix="give nanoseconds since 1970 or ISO 8601 (2022-07-11T10:06:18.25Z)"
        ) from None
    whole_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(seconds=1)
    return whole_s * NS_PER_S + (int(fraction[1].ljust(9, "0")) if fraction else 0)
