"""`hub init`, `hub enroll`, `hub revoke`, `hub nodes`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from collectors.enrolment.enrol import enrol, enrolled
from collectors.enrolment.enrol import revoke as revoke_node
from collectors.enrolment.index import Issued
from collectors.enrolment.site import Site, SiteOptions

DirOption = Annotated[Path, typer.Option("--dir", help="The folder that `hub init` made.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of lines for people.")]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node's id.")]
_DEFAULT = SiteOptions()


def init(
    directory: DirOption,
    name: Annotated[str, typer.Option(help="Of the site; stands in the authority's certificate.")] = _DEFAULT.name,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Name or address by which nodes reach the broker; repeatable.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Address on which the broker listens.")] = _DEFAULT.listen,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the broker.")] = _DEFAULT.port,
    broker_user: Annotated[str, typer.Option(help="Account under which mosquitto runs.")] = _DEFAULT.broker_user,
    as_json: JsonOption = False,
) -> None:
    """Make authority, certificates, broker files, signing keys and hub.toml; what exists is never touched."""
    hosts = tuple(dict.fromkeys([*(host or ()), *_DEFAULT.hosts]))
    site = Site(directory)
    made, kept = site.initialise(SiteOptions(name, hosts, listen, port, broker_user), datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps({"made": [str(p) for p in made], "kept": [str(p) for p in kept]}))
        return
    for what, paths in (("made", made), ("kept", kept)):
        for path in paths:
            typer.echo(f"{what}  {path}")
    typer.echo(
        f"\nNext:\n"
        f"  mosquitto -c {site.broker}/mosquitto.conf         (listens on {listen}:{port} as first set up)\n"
        f"  infomae-stream hub run --config {site.folder}/hub.toml\n"
        f"  on each node: infomae-stream node request --config node.toml, then bring the request here:\n"
        f"  infomae-stream hub enroll NODE --request NODE.csr --dir {site.folder}\n"
        f"Keep {site.ca} to yourself, and a copy of it elsewhere: whoever has ca.key decides who is a node."
    )


def enroll(
    node: NodeArgument,
    request: Annotated[Path, typer.Option("--request", help="The signing request that the node made.")],
    directory: DirOption = Path("."),
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificate is valid.")] = 365,
    renew: Annotated[bool, typer.Option("--renew", help="Although the node has a valid one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign a node's request; the folder that is printed goes back to the node."""
    issued, folder = enrol(Site(directory), node, request, days=days, now=datetime.now(UTC), renew=renew)
    if as_json:
        typer.echo(json.dumps({**_line(issued, datetime.now(UTC)), "folder": str(folder)}))
        return
    typer.echo(f"{node}: certificate {issued.serial:x}, valid until {issued.expires:%Y-%m-%d}")
    typer.echo(f"copy {folder} to the node; mqtt.toml in it has the lines for node.toml")


def revoke(
    node: NodeArgument,
    directory: DirOption = Path("."),
    superseded: Annotated[bool, typer.Option("--superseded", help="All but the newest certificate.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put the node's certificates on the revocation list."""
    site = Site(directory)
    revoked = revoke_node(site, node, now=datetime.now(UTC), superseded_only=superseded)
    if as_json:
        typer.echo(json.dumps({"revoked": [_line(c, datetime.now(UTC)) for c in revoked]}))
        return
    for certificate in revoked:
        typer.echo(f"{node}: certificate {certificate.serial:x} is revoked")
    typer.echo(
        "tell the broker: `systemctl reload mosquitto` (SIGHUP) shuts new connections out;\n"
        "`systemctl restart mosquitto` ends one that is open, too (other nodes come back and lose nothing)"
    )


def nodes(directory: DirOption = Path("."), as_json: JsonOption = False) -> None:
    """List the certificates of all nodes, with their state and their last day."""
    now = datetime.now(UTC)
    lines = [_line(c, now) for c in enrolled(Site(directory))]
    if as_json:
        typer.echo(json.dumps({"nodes": lines}))
        return
    typer.echo(f"{'node':<24}{'state':<10}{'expires':<14}{'days left':>9}  serial")
    for line in lines:
        typer.echo(
            f"{line['node']:<24}{line['state']:<10}{line['expires'][:10]:<14}{line['days_left']:>9}  {line['serial']}"
        )


def _line(certificate: Issued, now: datetime) -> dict[str, Any]:
    return {
        "node": certificate.name,
        "state": certificate.state(now),
        "serial": f"{certificate.serial:x}",
        "issued": certificate.issued.isoformat(timespec="seconds"),
        "expires": certificate.expires.isoformat(timespec="seconds"),
        "days_left": max((certificate.expires - now).days, 0),
        "revoked": certificate.revoked.isoformat(timespec="seconds") if certificate.revoked else None,
    }
