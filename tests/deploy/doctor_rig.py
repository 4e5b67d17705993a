"""A node's file for the doctor, a bundle installed for it, and what its findings owe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from collectors.deploying.finding import Finding
from collectors.deploying.node_toml import check_text
from infomae_stream.bundle import open_bundle
from infomae_stream.bundle_store import BundleStore
from infomae_stream.node_config import NodeConfig
from tests.commands import Ran, run_command
from tests.tiny_bundle import PUBLIC_KEY, TinyBundle

SYNTHETIC = 'sources = [{ type = "synthetic", kinds = ["seismic"] }]'
DECLARED = '[nodes.clock]\nsource = "declared"'


def config_of(folder: Path, nodes: str = f"{SYNTHETIC}\n{DECLARED}", head: str = "") -> NodeConfig:
    return check_text(toml(nodes, head), folder / "node.toml")


def toml(nodes: str = f"{SYNTHETIC}\n{DECLARED}", head: str = "") -> str:
    return f'{head}\n[[nodes]]\nsite = "orchard"\nnode = "orchard-1"\n{nodes}\n'


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    assert bool(finding.fix) == (finding.state != "ok"), "a fix stands where something is wrong, and only there"
    return finding


def assert_found(findings: Iterable[Finding], state: str, what: str, fix: str = "") -> None:
    finding = only(findings)
    assert finding.state == state and what in finding.what and fix in finding.fix, finding


def put_bundle(folder: Path, made: TinyBundle | None = None) -> Path:
    """Installed in `folder` as the node does it; the file that serves."""
    key = PUBLIC_KEY.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "k.pub").write_bytes(key)
    made = made or TinyBundle()
    made.write(folder / "made.zip")
    store = BundleStore(folder / "state" / "bundles")
    return store.path(store.activate(open_bundle(folder / "made.zip", [PUBLIC_KEY], now_ns=0, min_version=0)))


def doctor(config: Path, *arguments: object) -> Ran:
    """The command."""
    return run_command("node", "doctor", "--config", config, "--listen-s", 60, *arguments)
