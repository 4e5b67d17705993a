"""`bundle keygen` and `bundle verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infomae_stream.bundle import Bundle, Manifest, generate_keys, load_public_key, open_bundle, save_keys
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
        "format": manifest.format,
        "modalities": sorted(manifest.modalities),
        "int8": manifest.has_int8,
        "subsets": [subset.model_dump() for subset in manifest.subsets],
        "missing_losses": manifest.missing_losses(),
        "bytes": len(bundle.content),
        "lineage": manifest.lineage,
        "gates": manifest.gates,
    }


def _lines(bundle: Bundle) -> str:
    tables = ("verified", "subsets", "missing_losses")
    plain = [f"  {name}: {value}" for name, value in _summary(bundle).items() if name not in tables]
    return "\n".join(["verified", *plain, *_subset_table(bundle.manifest)])


def _subset_table(manifest: Manifest) -> list[str]:
    """What is left of macro-F1 with each subset of modalities, and what that loses against all of them."""
    if not manifest.subsets:
        return ["  subsets: not measured"]
    rows = sorted(manifest.subsets, key=lambda subset: (-len(subset.modalities), subset.modalities))
    whole = next((row.macro_f1 for row in rows if set(row.modalities) == set(manifest.modalities)), None)
    names = [" + ".join(row.modalities) for row in rows]
    width = max(len("modalities present"), *map(len, names))
    lines = [f"  {'modalities present':{width}}  macro-F1  lost   ({rows[0].windows} validation windows)"]
    for name, row in zip(names, rows, strict=True):
        lost = "" if whole is None else f"{whole - row.macro_f1:.3f}"
        lines.append(f"  {name:{width}}  {row.macro_f1:8.3f}  {lost}")
    return lines
