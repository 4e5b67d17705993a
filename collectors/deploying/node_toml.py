"""A node's first configuration file, with a word on what is worth changing."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collectors.deploying.source_lines import commented, quoted
from collectors.sources import check_options
from infomae_stream.config import validate
from infomae_stream.node_config import NodeConfig

TLS_PORT: Final = 8883

_TEXT: Final = """\
# A node of infomae-stream. Relative paths are seen from this file's folder; any key may be left out for its default.
# After a change: infomae-stream node doctor --config {file}
{state_dir}
{mqtt}
[metrics]                         # what Prometheus reads: collecting, detecting
host = "127.0.0.1"
collect_port = 9101
detect_port = 9102

[outbox]                          # what waits for the hub, on this disk
max_bytes = 2_000_000_000         # beyond this the oldest of the least important is given up, and a record says so
reserve_bytes = 50_000_000        # free disk space into which the outbox does not grow
keep_s = 60.0                     # what the hub has stays this long for the detector

[detect]
enabled = true
trusted_keys = ["tls/release.pub"] # comes with `hub enroll`; bundles signed by anyone else are refused

[[nodes]]
{site}
{node}

[nodes.clock]
{clock}

{sources}
"""
_TLS: Final = """
[mqtt]
host = {host}
port = {port}
ca_file = "tls/ca.pem"            # these three come from `node request` here and `hub enroll` at the hub
cert_file = "tls/{{node}}.pem"
key_file = "tls/{{node}}.key"
"""
_PLAIN: Final = """
[mqtt]                            # not encrypted: for this machine, or a network of your own. TLS: docs/security.md
host = {host}
port = {port}
"""


@dataclass(frozen=True, slots=True)
class NodeFile:
    """What has to be known of a node. sources: the lines of each of its tables. clock: chrony, gpsd or system."""

    site: str
    node: str
    host: str
    port: int
    tls: bool
    clock: str
    sources: Sequence[Sequence[str]]

    def text(self, path: Path) -> str:
        """The file that is to lie at `path`, checked as the node will check it. Raises ConfigError."""
        broker = (_TLS if self.tls else _PLAIN).format(host=quoted(self.host), port=self.port)
        # A service keeps its state where systemd lets it; beside the file is for trials.
        state_dir = "/var/lib/infomae-node" if path.is_relative_to("/etc") else "state"
        text = _TEXT.format(
            file=path.name,
            state_dir=commented(f"state_dir = {quoted(state_dir)}", "outbox and bundles"),
            mqtt=broker,
            site=commented(f"site = {quoted(self.site)}", "streams that may pair share a site"),
            node=commented(f"node = {quoted(self.node)}", "the name in this node's certificate"),
            clock=commented(f"source = {quoted(self.clock)}", "chrony, gpsd, or system (what the kernel knows)"),
            sources="\n\n".join("\n".join(lines) for lines in self.sources),
        )
        check_text(text, path)
        return text


def check_text(text: str, path: Path) -> NodeConfig:
    """The configuration in `text`, every source's options checked. Raises ConfigError that names `path`."""
    raw = tomllib.loads(text)
    raw["base_dir"] = path.parent
    config = validate(raw, NodeConfig, where=str(path))
    check_sources(config, str(path))
    return config


def check_sources(config: NodeConfig, where: str) -> None:
    """Check the options of every source, nothing opened. Raises ConfigError with the dotted key."""
    for n, node in enumerate(config.nodes):
        for m, raw in enumerate(node.sources):
            check_options(raw, where=where, prefix=("nodes", str(n), "sources", str(m)))
