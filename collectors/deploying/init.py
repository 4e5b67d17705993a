"""`node init`: a first node.toml, by questions or by options."""

from __future__ import annotations

import shlex
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from collectors.deploying.node_toml import TLS_PORT, NodeFile
from collectors.deploying.scan import Device, Found, plugged_in
from collectors.deploying.source_lines import SOURCE_LINES, Value, questions, source_lines
from infomae_stream.errors import ConfigError, DataError
from infomae_stream.types import check_id


def init(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("node.toml"),
    site: Annotated[str, typer.Option(help="The site: streams that may pair share one.")] = "",
    node: Annotated[str, typer.Option(help="This node's id, the name in its certificate.")] = "",
    broker: Annotated[str, typer.Option(help="host or host:port.")] = "",
    tls: Annotated[bool | None, typer.Option("--tls/--no-tls", help="When left out, port 8883 decides.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="A source, as in 'alsa device=UMIK-1'; may be given again.")
    ] = None,
    clock: Annotated[str, typer.Option(help="chrony, gpsd or system; found when left out.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: what is left out gets its default.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented configuration for this node; what no option tells is asked."""
    if out.exists() and not force:
        raise ConfigError("there is a file already", where=str(out), fix="--force overwrites it, --out names another")
    site = _id("site", site or _ask("Site (streams that may pair share one)", "site-1", yes))
    node = _id("node", node or _ask("This node's name", _own_name(site), yes))
    host, port = _broker(broker or _ask("Broker, host:port (8883: TLS)", f"hub.local:{TLS_PORT}", yes))
    tables = [source_lines(*_source(text)) for text in source or ()]
    if not tables:
        if yes:
            raise ConfigError("no --source", where="node init", fix="`infomae-stream node devices` lists what is here")
        tables = ask_sources(plugged_in(listen_s=0.0))
    encrypted = port == TLS_PORT if tls is None else tls
    file = NodeFile(site, node, host, port, encrypted, clock or _clock(), tables)
    text = file.text(out.resolve())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {out}: node {node} of site {site}, {len(tables)} source(s)")
    if file.tls:
        typer.echo(f"next: infomae-stream node request --config {shlex.quote(str(out))}")
    typer.echo(f"then: infomae-stream node doctor --config {shlex.quote(str(out))}")


def _ask(question: str, default: str, yes: bool) -> str:
    return default if yes else str(typer.prompt(question, default=default))


def _id(what: str, value: str) -> str:
    try:
        return check_id(value, what)
    except DataError as e:
        raise ConfigError(e.what, where="node init", fix=e.fix) from e


def _own_name(site: str) -> str:
    """This machine's name where it is an id, else one made of the site."""
    name = socket.gethostname().partition(".")[0].lower()
    try:
        return check_id(name, "node")
    except DataError:
        return f"{site[:44]}-1"


def _broker(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or host.endswith(":"):  # a name alone, or an IPv6 address
        return text.strip("[]"), TLS_PORT
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{text!r} is no broker", where="--broker", fix=f"write host:port, as hub.local:{TLS_PORT}")
    return host.strip("[]"), int(port)


def _source(text: str) -> tuple[str, dict[str, Value]]:
    """`alsa device=UMIK-1 rate_hz=44100` -> kind and options. Raises ConfigError."""
    try:
        kind, *pairs = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"{text!r} cannot be read: {e}", where="--source", fix="'KIND key=value ...'") from e
    options: dict[str, Value] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is no key=value", where=f"--source {kind}", fix="'KIND key=value ...'")
        options[key] = value
    return kind, options


def _clock() -> str:
    return "chrony" if shutil.which("chronyc") else "system"


def ask_sources(found: Sequence[Found]) -> list[list[str]]:
    """Offer what is plugged in, then ask for any other kind by its name; the lines of each source."""
    tables = []
    for device in (entry for entry in found if isinstance(entry, Device) and entry.kind in SOURCE_LINES):
        if typer.confirm(f"Use {device.what}?", default=True):
            tables.append(_ask_source(device.kind, device.options))
    while True:
        kind = typer.prompt(f"Another source ({', '.join(SOURCE_LINES)}), or none", default="none").strip()
        if kind != "none":
            tables.append(_ask_source(kind, {}))
        elif tables:
            return tables
        else:
            typer.echo("A node needs one at least; `synthetic` makes a scene up, for a trial.")


def _ask_source(kind: str, known: dict[str, Value]) -> list[str]:
    answers = dict(known)
    for question in questions(kind):
        if question.key not in known:
            # As text: 0x69 is a number, too.
            default = None if question.required else str(question.default)
            answers[question.key] = typer.prompt(f"  {question.text}", default=default, show_default=default != "")
    return source_lines(kind, answers)
