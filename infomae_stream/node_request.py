"""`node request`: the node makes its own key, and a signing request for the hub. The key never leaves the node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError
from infomae_stream.key_files import load_key, new_key, signing_request, write_key, write_whole
from infomae_stream.node_config import NodeConfig
from infomae_stream.types import check_id


@dataclass(frozen=True, slots=True)
class Request:
    """`new_key`: False when the node had a key already, which is then asked for again (a renewal)."""

    node: str
    key_path: Path
    request_path: Path
    new_key: bool


def make_request(node: str, key_path: Path) -> Request:
    """Write `<key_path without suffix>.csr`, and the key (mode 0600) unless there is one.

    Raises ConfigError when the file at `key_path` is no key, DataError when `node` is no id.
    """
    check_id(node, "node")
    key_path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not key_path.exists()
    if fresh:
        write_key(key_path, new_key())
    request_path = key_path.with_suffix(".csr")
    write_whole(request_path, signing_request(node, load_key(key_path)), 0o644)
    return Request(node, key_path, request_path, fresh)


def request(
    config: Annotated[Path | None, typer.Option("--config", help="The node's TOML file: a request a node.")] = None,
    node: Annotated[str, typer.Option("--node", help="Instead of --config: the node's id.")] = "",
    directory: Annotated[Path, typer.Option("--dir", help="With --node: where key and request go.")] = Path("tls"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines for people.")] = False,
) -> None:
    """Make a key on this node and a signing request for the hub; an existing key is used again."""
    if (config is None) == (not node):
        raise ConfigError("give --config or --node", where="node request", fix="--config node.toml")
    wanted = [(node, directory / f"{node}.key")] if config is None else _from_config(config)
    made = [make_request(name, path) for name, path in wanted]
    if as_json:
        lines = [
            {"node": r.node, "key": str(r.key_path), "request": str(r.request_path), "new_key": r.new_key} for r in made
        ]
        typer.echo(json.dumps({"requests": lines}))
        return
    for r in made:
        typer.echo(f"{r.node}: key {r.key_path} ({'new' if r.new_key else 'kept'}), it stays here")
        typer.echo(
            f"take {r.request_path} to the hub: infomae-stream hub enroll {r.node} --request {r.request_path.name}"
        )


def _from_config(path: Path) -> list[tuple[str, Path]]:
    config = load_config(path, NodeConfig)
    wanted = []
    for node in config.nodes:
        key_file = config.mqtt.for_node(node.node).key_file or f"tls/{node.node}.key"
        wanted.append((node.node, config.path(key_file)))
    if len({path for _, path in wanted}) < len(wanted):
        raise ConfigError(
            "several nodes share one mqtt.key_file",
            where=str(path),
            fix='write key_file = "tls/{node}.key" and cert_file = "tls/{node}.pem": each node has its own',
        )
    return wanted
