"""Certificates of nodes: enrol, renew, revoke, list."""

from __future__ import annotations

import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from collectors.enrolment.authority import Authority, Usage, check_request
from collectors.enrolment.index import Issued
from collectors.enrolment.site import BROKER_NAME, HUB_NAME, Site
from infomae_stream.errors import ConfigError
from infomae_stream.key_files import key_digest, write_whole
from infomae_stream.types import check_id

MAX_REQUEST_BYTES: Final = 65_536

_NODE_TOML: Final = """\
# Put these files beside node.toml, in tls/, and this into node.toml. host is a name that `hub init --host` was given.
[mqtt]
host = "{host}"
port = {port}
ca_file = "tls/ca.pem"
cert_file = "tls/{node}.pem"
key_file = "tls/{node}.key"
"""


def enrol(
    site: Site, node: str, request: Path, *, days: int, now: datetime, renew: bool = False
) -> tuple[Issued, Path]:
    """Sign a node's request; return what was issued and the folder to give back to the node.

    Raises ConfigError: not a request of this node, a valid certificate already and no `renew`, or a revoked key.
    DataError when `node` is no id.
    """
    check_id(node, "node")
    authority = Authority(site.ca)
    try:
        if request.stat().st_size > MAX_REQUEST_BYTES:
            raise ConfigError("too large for a signing request", where=str(request))
        key = check_request(request.read_bytes(), node, str(request))
    except OSError as e:
        raise ConfigError(f"cannot read the request: {e.strerror}", where=str(request)) from e
    earlier = authority.index.certificates(node)
    valid = [c for c in earlier if c.state(now) == "valid"]
    if valid and not renew:
        raise ConfigError(
            f"{node} has a certificate that is valid until {valid[-1].expires:%Y-%m-%d}",
            where=str(site.folder),
            fix="renew it with --renew, or revoke it first (`infomae-stream hub revoke`)",
        )
    # Whoever stole the key could ask again; a key that was revoked once never comes back, under no name.
    if any(c.key == key_digest(key) and c.revoked for c in authority.index.certificates()):
        raise ConfigError(
            "this key has been revoked", where=str(request), fix="move it away on the node and request again"
        )
    certificate = authority.issue(node, key, Usage(), timedelta(days=days), now)
    issued = authority.index.certificates(node)[-1]
    return issued, _hand_out(site, node, certificate)


def revoke(site: Site, node: str, *, now: datetime, superseded_only: bool = False) -> list[Issued]:
    """Revoke the node's valid certificates, all or all but the newest; return those. The broker has to be told.

    Raises ConfigError when there is nothing to revoke.
    """
    authority = Authority(site.ca)
    valid = [c for c in authority.index.certificates(node) if c.state(now) == "valid"]
    wanted = valid[:-1] if superseded_only else valid
    if not wanted:
        raise ConfigError(
            f"{node} has no {'superseded ' if superseded_only else ''}certificate that is valid",
            where=str(site.folder),
            fix="see `infomae-stream hub nodes`",
        )
    authority.revoke([c.serial for c in wanted], now)
    site.publish_crl()
    done = {c.serial for c in wanted}
    return [c for c in authority.index.certificates(node) if c.serial in done]


def enrolled(site: Site) -> list[Issued]:
    """Every certificate of a node, by node and in the order of issue."""
    found = [c for c in Authority(site.ca).index.certificates() if c.name not in (HUB_NAME, BROKER_NAME)]
    return sorted(found, key=lambda c: (c.name, c.issued))


def _hand_out(site: Site, node: str, certificate: bytes) -> Path:
    folder = site.nodes / node
    folder.mkdir(parents=True, exist_ok=True)
    host, port = _broker_address(site)
    write_whole(folder / f"{node}.pem", certificate, 0o644)
    write_whole(folder / "ca.pem", (site.ca / "ca.pem").read_bytes(), 0o644)
    write_whole(folder / "mqtt.toml", _NODE_TOML.format(node=node, host=host, port=port).encode(), 0o644)
    public_key = site.keys / "release.pub"
    if public_key.exists():
        write_whole(folder / "release.pub", public_key.read_bytes(), 0o644)
    return folder


def _broker_address(site: Site) -> tuple[str, int]:
    """What the hub itself uses; a node elsewhere needs the name that the hub is known by there."""
    try:
        mqtt = tomllib.loads((site.folder / "hub.toml").read_text(encoding="utf-8"))["mqtt"]
        return str(mqtt["host"]), int(mqtt["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return "hub.example", 8883
