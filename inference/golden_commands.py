"""`bundle golden`: would this machine compute what the trainer computed?"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from inference.detector import Detector, check_golden
from inference.runtimes import make_runtime
from infomae_stream.bundle import load_public_key, open_bundle
from infomae_stream.errors import BundleError


def golden(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    key: Annotated[list[Path], typer.Option("--key", help="A trusted public key; may be given again.")],
    runtime: Annotated[str, typer.Option(help="What runs the graphs.")] = "onnx",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a line for people.")] = False,
) -> None:
    """Run a bundle's golden vectors here; exit 1 and the reason when it is refused or its fp32 scores differ.

    Signature, hashes and contract are checked before; expiry is not: it bounds how long a bundle may be installed.
    """
    keys = [load_public_key(path) for path in key]
    passed: dict[str, float] = {}
    try:
        bundle = open_bundle(file, keys, now_ns=0, min_version=0)
        made = make_runtime(runtime, 1)
        passed["fp32"] = check_golden(Detector(bundle, made, "fp32"))
    except BundleError as e:
        if not as_json:
            raise
        typer.echo(json.dumps({"passed": False, "reason": e.reason, "error": str(e), "machine": platform.machine()}))
        raise typer.Exit(1) from e
    refused = ""
    if bundle.manifest.has_int8:
        try:
            passed["int8"] = check_golden(Detector(bundle, made, "int8"))
        except BundleError as e:
            refused = str(e)  # a node then serves fp32
    told = {
        "passed": True,
        "version": bundle.version,
        "windows": bundle.golden.n_windows,
        "largest_difference": passed,
        "int8_refused": refused,
        "machine": platform.machine(),
    }
    typer.echo(json.dumps(told) if as_json else _line(told))


def _line(told: dict[str, Any]) -> str:
    differences = ", ".join(f"{name} {value:.2g}" for name, value in told["largest_difference"].items())
    line = f"version {told['version']} on {told['machine']}: {told['windows']} golden windows pass, largest difference "
    return line + differences + (f"; int8 is refused: {told['int8_refused']}" if told["int8_refused"] else "")
