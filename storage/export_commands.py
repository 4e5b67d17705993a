"""`lake export`: samples of streams into Parquet, CSV, WAV or miniSEED files, with a description beside each."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import DataError, LakeError
from infomae_stream.types import StreamId
from storage.exports import ExportOptions
from storage.exports.job import ExportJob
from storage.exports.reading import find_holdings
from storage.lake_place import ConfigOption, JsonOption, LakeOption, existing_lake
from storage.plain_text import bytes_text, json_line, progress_bar

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS: Final = re.compile(r"(\d{1,10})(?:\.(\d{1,9}))?")
_FRACTION: Final = re.compile(r"[.,](\d{1,9})")


class Format(StrEnum):
    parquet = "parquet"
    csv = "csv"
    wav = "wav"
    mseed = "mseed"


def export(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files; made when missing.")],
    stream: Annotated[list[str], typer.Option("--stream", metavar="SITE/NODE/STREAM", help="May be given again.")],
    format: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.parquet,
    lake: LakeOption = None,
    config: ConfigOption = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="First sample: ISO 8601 with a zone, or Unix seconds.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Just after the last sample.")] = None,
    fill: Annotated[bool, typer.Option("--fill", help="wav: zeros in holes instead of a new file.")] = False,
    seed_id: Annotated[
        list[str] | None, typer.Option("--seed-id", metavar="NET.STA.LOC.CHA", help="mseed: one a channel, in order.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the counts as the sensors gave them, cut to the range; holes stay holes."""
    from_ns, to_ns = time_option(start, "--from"), time_option(end, "--to")
    if from_ns is not None and to_ns is not None and from_ns >= to_ns:
        raise typer.BadParameter(f"{end} is not after {start}", param_hint="--to")
    if fill and format is not Format.wav:
        raise typer.BadParameter("only wav has no other way to tell a hole", param_hint="--fill")
    if seed_id and format is not Format.mseed:
        raise typer.BadParameter("only mseed has SEED ids", param_hint="--seed-id")
    streams = [stream_option(text) for text in dict.fromkeys(stream)]
    place = existing_lake(lake, config)
    options = ExportOptions(fill, tuple(seed_id or ()))
    held = [find_holdings(place, one, from_ns, to_ns) for one in streams]
    jobs = [ExportJob(place, one, format.value, out, options) for one in held]  # refusals come before any file
    _make_folder(out)
    files = []
    for one, job in zip(held, jobs, strict=True):
        with progress_bar(f"export {one.stream}", quiet=as_json) as advance:
            files += job.run(advance)
    if as_json:
        typer.echo(json_line({"format": format.value, "files": [asdict(file) for file in files]}))
        return
    for file in files:
        typer.echo(f"{file.file}  {file.n_samples} samples, stretches: {file.stretches}, {bytes_text(file.bytes)}")


def stream_option(text: str) -> StreamId:
    """Raises typer.BadParameter."""
    try:
        site, node, stream = text.split("/")
        return StreamId(site, node, stream)
    except (ValueError, DataError) as e:
        raise typer.BadParameter(f"{text!r} is not SITE/NODE/STREAM", param_hint="--stream") from e


def time_option(text: str | None, name: str) -> int | None:
    """Nanoseconds UTC of ISO 8601 with a zone, or of Unix seconds. Raises typer.BadParameter."""
    if text is None:
        return None
    text = text.strip()
    if seconds := _SECONDS.fullmatch(text):
        return int(seconds[1]) * NS_PER_S + int((seconds[2] or "").ljust(9, "0"))
    fraction = _FRACTION.search(text)
    try:  # the fraction apart: datetime keeps microseconds only
        moment = datetime.fromisoformat(_FRACTION.sub("", text, count=1))
    except ValueError:
        raise typer.BadParameter(
            f"{text[:60]!r} is not a time; give 2026-07-11T10:06:18.25Z or Unix seconds", param_hint=name
        ) from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no zone; write {text}Z for UTC", param_hint=name)
    if not 0 <= (whole := (moment - _EPOCH) // timedelta(seconds=1)) < 2**32:
        raise typer.BadParameter(f"{text!r} is out of range", param_hint=name)
    return whole * NS_PER_S + (int(fraction[1].ljust(9, "0")) if fraction else 0)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LakeError(f"cannot make the folder: {e.strerror or e}", where=str(out), fix="give another --out") from e
