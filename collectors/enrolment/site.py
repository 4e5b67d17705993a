"""The files of a hub: what `hub init` makes, each only when it is missing, and where everything lies.

ca/        key, certificate, index and CRL of the authority; readable by its owner only
broker/    all that mosquitto reads
tls/       the hub's own certificate (ingest and aligner connect with it)
keys/      the pair that signs bundles
nodes/     a folder a node, to be copied to it
hub.toml   a first configuration
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from collectors.enrolment.authority import Authority, Usage
from infomae_stream.key_files import load_key, new_key, write_exclusively, write_key, write_whole
from infomae_stream.signing_keys import generate_keys, save_keys
from infomae_stream.topics import NODE_LEAVES, ROOT, STREAM_LEAVES

# A node's id has no dot (`check_id`), so no node can ever be enrolled under the hub's name.
HUB_NAME: Final = "infomae.hub"
BROKER_NAME: Final = "infomae.broker"
OWN_DAYS: Final = 730

_MOSQUITTO: Final = """\
# Written by `infomae-stream hub init`. Only clients with a certificate of this site's authority come in, and each is
# known by the certificate's common name: a node's id.
user {user}
listener {port} {listen}
cafile {folder}/ca.pem
certfile {folder}/broker.pem
keyfile {folder}/broker.key
crlfile {folder}/crl.pem
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {folder}/acl

# Data are safe without the broker's help: a node deletes a record only when the hub says that it lies in the lake.
persistence false
# A chunk is about 2 kB; the program takes messages of at most 4 MiB.
max_packet_size 4200000
max_inflight_messages 200
max_queued_messages 20000

log_type error
log_type warning
log_type notice
log_dest stderr
# Under $SYS/broker/log, where the hub counts refused connections.
log_dest topic
connection_messages true
"""

_READ_BY_NODES: Final = ("ack", "bundle/desired")


def access_rules() -> str:
    """mosquitto's ACL. `%u` is the common name of the certificate, so a node writes below its own topic only."""
    written = [*(f"+/{leaf}" for leaf in STREAM_LEAVES), *(leaf for leaf in NODE_LEAVES if leaf not in _READ_BY_NODES)]
    lines = [
        "# Written by `infomae-stream hub init`. The hub reads what nodes write, and writes what they read.",
        f"user {HUB_NAME}",
        f"topic read {ROOT}/#",
        *(f"topic write {ROOT}/+/+/{leaf}" for leaf in _READ_BY_NODES),
        "topic read $SYS/broker/log/#",
        "",
        "# %u is the common name of a client's certificate: the node's id.",
        *(f"pattern write {ROOT}/+/%u/{leaf}" for leaf in written),
        *(f"pattern read {ROOT}/+/%u/{leaf}" for leaf in _READ_BY_NODES),
    ]
    return "\n".join(lines) + "\n"


_HUB_TOML: Final = """\
[mqtt]
host = "{host}"
port = {port}
ca_file = "tls/ca.pem"
cert_file = "tls/hub.pem"
key_file = "tls/hub.key"

[lake]
path = "lake"

# The next two sections are yours to fill in: one modality an encoder, the classes to tell apart, and the sites
# whose labels judge a model and never train it.
[matcher]
modalities = ["phone_imu", "watch_imu"]

[align]
classes = ["walking", "standing"]
validation_sites = ["site-1"]

[release]
signing_key = "keys/release.pem"
"""


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """hosts: names and addresses that nodes reach the broker by. listen: the address that it listens on."""

    name: str = "infomae"
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    listen: str = "127.0.0.1"
    port: int = 8883
    broker_user: str = "mosquitto"


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.ca = self.folder / "ca"
        self.broker = self.folder / "broker"
        self.tls = self.folder / "tls"
        self.keys = self.folder / "keys"
        self.nodes = self.folder / "nodes"

    def initialise(self, options: SiteOptions, now: datetime) -> tuple[list[Path], list[Path]]:
        """Make what is missing; return (made, kept). Raises ConfigError for a host that is none."""
        made: list[Path] = []
        kept: list[Path] = []

        def ensure(path: Path, make: Callable[[], object]) -> None:
            if path.exists():
                kept.append(path)
            else:
                make()
                made.append(path)

        for folder in (self.broker, self.tls, self.nodes):
            folder.mkdir(parents=True, exist_ok=True)
        ensure(self.ca / "ca.pem", lambda: Authority.create(self.ca, f"{options.name} authority", now))
        authority = Authority(self.ca)
        ensure(authority.crl_path, lambda: authority.write_crl(now))
        for folder, stem, name, usage in (
            (self.broker, "broker", BROKER_NAME, Usage(server=options.hosts)),
            (self.tls, "hub", HUB_NAME, Usage()),
        ):
            key, certificate = folder / f"{stem}.key", folder / f"{stem}.pem"
            ensure(key, lambda key=key: write_key(key, new_key()))  # type: ignore[misc]
            ensure(
                certificate,
                lambda key=key, certificate=certificate, name=name, usage=usage: write_exclusively(  # type: ignore[misc]
                    certificate,
                    authority.issue(name, load_key(key).public_key(), usage, timedelta(days=OWN_DAYS), now),
                    0o644,
                ),
            )
            ensure(folder / "ca.pem", lambda folder=folder: self._copy_ca(authority, folder))  # type: ignore[misc]
        if self.broker / "broker.key" in made:
            _give_to(self.broker / "broker.key", options.broker_user)
        for path, text in self._texts(options):
            ensure(path, lambda path=path, text=text: write_exclusively(path, text.encode(), 0o644))  # type: ignore[misc]
        ensure(self.keys / "release.pem", lambda: save_keys(self.keys, generate_keys()[0]))
        self.publish_crl()
        return made, kept

    def publish_crl(self) -> None:
        """Put the authority's CRL where the broker reads it."""
        write_whole(self.broker / "crl.pem", (self.ca / "crl.pem").read_bytes(), 0o644)

    def _texts(self, options: SiteOptions) -> list[tuple[Path, str]]:
        conf = _MOSQUITTO.format(folder=self.broker, listen=options.listen, port=options.port, user=options.broker_user)
        return [
            (self.broker / "mosquitto.conf", conf),
            (self.broker / "acl", access_rules()),
            (self.folder / "hub.toml", _HUB_TOML.format(host=options.hosts[0], port=options.port)),
        ]

    def _copy_ca(self, authority: Authority, folder: Path) -> None:
        write_exclusively(folder / "ca.pem", authority.certificate_path.read_bytes(), 0o644)


def _give_to(path: Path, user: str) -> None:
    """Mosquitto gives up root before it reads its key, so the key has to be its own."""
    if os.geteuid() != 0:
        return
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return
    os.chown(path, account.pw_uid, account.pw_gid)
