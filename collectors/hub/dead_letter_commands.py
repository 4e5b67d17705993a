"""`lake dead-letters`: the messages that were refused for good, and how much of each can still be read."""

from __future__ import annotations

import difflib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import cbor2
import typer
from rich.table import Table

from collectors.hub.ingest import claimed_identity
from infomae_stream.errors import DataError, LakeError, WireError
from infomae_stream.topics import parse_topic
from storage.lake_place import ConfigOption, JsonOption, LakeOption, lake_at, lake_folder
from storage.lake_status import DEAD_LETTERS
from storage.plain_text import bytes_text, console, json_line, time_text

_HEX_BYTES: Final = 256
_LONGEST_VALUE: Final = 200


@dataclass(frozen=True, slots=True)
class Letter:
    """`claims`: "site/node epoch seq" that the message says it is; "" where that cannot be told. `complete`: the
    bytes are there too."""

    name: str
    reason: str
    topic: str
    text: str
    bytes: int
    received_ns: int
    claims: str
    complete: bool


def dead_letters(
    lake: LakeOption = None,
    config: ConfigOption = None,
    show: Annotated[str, typer.Option(metavar="NAME", help="One letter: its head, and what can be decoded.")] = "",
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy all letters into a new or empty folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List messages that ingest refused for good: reason, topic, time, size, and whose they claim to be."""
    folder = lake_at(lake_folder(lake, config)).path / DEAD_LETTERS
    if show and export:
        raise typer.BadParameter("give --show or --export, not both")
    if show:
        _show(folder, show, as_json)
    elif export:
        count = _export(folder, export)
        typer.echo(json_line({"letters": count, "folder": str(export)}) if as_json else f"{count} letters in {export}")
    else:
        _list(list(read_letters(folder)), as_json)


def read_letters(folder: Path) -> Iterator[Letter]:
    """The letters of a folder, oldest first; none when the folder is not there. A damaged note is told as such."""
    notes = []
    for path in folder.glob("*.json"):
        try:
            note = json.loads(path.read_bytes())
            notes.append((int(note["received_ns"]), path, note))
        except FileNotFoundError:  # ingest dropped it meanwhile
            continue
        except (ValueError, KeyError, TypeError):
            notes.append((0, path, {"reason": path.stem.split("-")[0], "text": "its note is damaged"}))
    for received_ns, path, note in sorted(notes, key=lambda item: item[:2]):
        payload = _payload(path)
        yield Letter(
            name=path.stem,
            reason=str(note["reason"]),
            topic=str(note.get("topic", "")),
            text=str(note.get("text", "")),
            bytes=len(payload or b"") or int(note.get("bytes", 0)),
            received_ns=received_ns,
            claims=_claims(str(note.get("topic", "")), payload or b""),
            complete=payload is not None,
        )


def refused_identities(folder: Path) -> Iterator[tuple[str, str, str, int]]:
    """(site, node, epoch, seq) of every letter that tells it: numbers that the lake will never hold."""
    for letter in read_letters(folder):
        if letter.claims:
            place, epoch, seq = letter.claims.rsplit(" ", 2)
            site, node = place.split("/")
            yield site, node, epoch, int(seq)


def decoded_fields(payload: bytes) -> dict[str, Any]:
    """The fields of a message up to where it is damaged; long values are cut. Never raises."""
    found: dict[str, Any] = {}
    try:
        if payload[:1] == b"{":
            return {str(k): _short(v) for k, v in json.loads(payload).items()}
        if not payload or payload[0] >> 5 != 5:
            return found
        size = payload[0] & 0x1F
        stream = io.BytesIO(payload[1 if size < 24 else 2 :])
        decoder = cbor2.CBORDecoder(stream, max_depth=6, allow_indefinite=False, strict_hashable_types=True)
        for _ in range(size if size < 24 else payload[1]):
            name = decoder.decode()
            found[str(name)[:80]] = _short(decoder.decode())
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, ArithmeticError, RecursionError, IndexError):
        pass
    return found


def _short(value: Any) -> Any:
    if isinstance(value, int | float | None):
        return value
    if isinstance(value, cbor2.CBORTag):
        inner = value.value
        if isinstance(inner, bytes):
            return f"<typed array, tag {value.tag}, {len(inner)} bytes>"
        return f"<tag {value.tag}: {_short(inner)}>"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {str(k): _short(v) for k, v in list(value.items())[:32]}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value[:32]]
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}... ({len(text)} characters)"


def _claims(topic: str, payload: bytes) -> str:
    try:
        where = parse_topic(topic)
    except WireError:
        return ""
    claimed = claimed_identity(payload)
    return "" if claimed is None else f"{where.site}/{where.node} {claimed[0]} {claimed[1]}"


def _payload(note: Path) -> bytes | None:
    try:
        return note.with_suffix(".bin").read_bytes()
    except OSError:
        return None


def _list(letters: list[Letter], as_json: bool) -> None:
    by_reason = dict(sorted(Counter(letter.reason for letter in letters).items()))
    if as_json:
        typer.echo(json_line({"letters": [asdict(letter) for letter in letters], "by_reason": by_reason}))
        return
    if not letters:
        typer.echo("no dead letters")
        return
    table = Table("name", "reason", "received", "bytes", "claims to be", "topic", "text")
    for n in letters:
        received = time_text(n.received_ns) if n.received_ns else "?"
        cells = (n.name, n.reason, received, bytes_text(n.bytes), n.claims or "?", n.topic, n.text)
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console().print(table)
    typer.echo("   ".join(f"{reason} {count}" for reason, count in by_reason.items()))


def _show(folder: Path, name: str, as_json: bool) -> None:
    letters = {letter.name: letter for letter in read_letters(folder)}
    matching = [n for n in letters if n.startswith(name)]
    reasons = difflib.get_close_matches(name, {n.split("-")[0] for n in letters})
    if len(matching) != 1:
        near = [n for n in letters if n.split("-")[0] in reasons] or list(letters)
        what = f"{len(matching)} letters begin with {name!r}" if matching else f"no letter {name!r}"
        raise DataError(what, where=str(folder), fix=f"known: {', '.join((matching or near)[:5]) or 'none'}")
    letter = letters[matching[0]]
    payload = _payload(folder / f"{letter.name}.json") or b""
    fields = decoded_fields(payload)
    if as_json:
        typer.echo(json_line({**asdict(letter), "head_hex": payload[:_HEX_BYTES].hex(), "decoded": fields}))
        return
    for field, value in asdict(letter).items():
        typer.echo(f"{field:<12} {time_text(value) if field == 'received_ns' and value else value}")
    typer.echo("decoded, as far as it goes:" if fields else "nothing of it can be decoded")
    for field, value in fields.items():
        typer.echo(f"  {field:<14} {json_line(value)}")
    typer.echo(f"first {min(len(payload), _HEX_BYTES)} of {len(payload)} bytes:")
    for at in range(0, min(len(payload), _HEX_BYTES), 16):
        line = payload[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in line)
        typer.echo(f"  {at:04x}  {line.hex(' '):<47}  {text}")


def _export(folder: Path, to: Path) -> int:
    letters = list(read_letters(folder))
    try:
        to.mkdir(parents=True, exist_ok=True)
        if any(to.iterdir()):
            raise DataError("the folder is not empty", where=str(to), fix="give a new one")
        for letter in letters:
            for suffix in (".json", ".bin") if letter.complete else (".json",):
                shutil.copy2(folder / f"{letter.name}{suffix}", to)
    except OSError as e:
        raise LakeError(f"cannot write: {e.strerror or e}", where=str(to)) from e
    return len(letters)
