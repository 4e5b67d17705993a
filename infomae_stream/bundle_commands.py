"""`bundle keygen` and `bundle verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infomae_stream.bundle import Bundle, generate_keys, load_public_key, open_bundle, save_keys
from infomae_stream.clock import SystemClock
from infomae_stream.errors import BundleError

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of lines for people.")]


def keygen(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where release.pem and release.pub are written.")],
    as_json: JsonOption = False,
) -> None:
    """Make the pair of keys: release.pem signs and stays on the hub, release.pub goes to every node."""
    private_path, public_path = save_keys(directory, generate_keys()[0])
    if as_json:
        typer.echo(json.dumps({"private_key": str(private_path), "public_key": str(public_path)}))
    else:
        typer.echo(f"signs, keep it secret: {private_path}\nchecks, give it to the nodes: {public_path}")


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    key: Annotated[list[Path], typer.Option("--key", help="A trusted public key; may be given again.")],
    min_version: Annotated[int, typer.Option(help="Refuse versions below this.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check signature, hashes, expiry, contract and finite weights; exit 1 and the reason when refused.

    The golden vectors are checked by the node that is to serve it.
    """
    keys = [load_public_key(path) for path in key]
    try:
        bundle = open_bundle(file, keys, now_ns=SystemClock().now_ns(), min_version=min_version)
    except BundleError as e:
        if not as_json:
            raise
        typer.echo(json.dumps({"verified": False, "reason": e.reason, "error": str(e)}))
        raise typer.Exit(1) from e
    typer.echo(json.dumps(_summary(bundle)) if as_json else _lines(bundle))


def _summary(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "verified": True,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "created_ns": manifest.created_ns,
        "expires_ns": manifest.expires_ns,
        "classes": list(bundle.classes),
        "modalities": sorted(manifest.modalities),
        "bytes": len(bundle.content),
        "lineage": manifest.lineage,
        "gates": manifest.gates,
    }


def _lines(bundle: Bundle) -> str:
    summary = _summary(bundle)
    return "verified\n" + "\n".join(f"  {name}: {value}" for name, value in summary.items() if name != "verified")
