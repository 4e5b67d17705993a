"""`node doctor` on TLS: what a certificate may have, and what a broker over TLS says of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from collectors.deploying.check_broker import check_broker, check_certificate
from collectors.deploying.finding import Finding
from infomae_stream.key_files import new_key, write_key
from infomae_stream.node_config import MqttSettings, NodeConfig
from tests.deploy.doctor_rig import assert_found
from tests.security.sites import HAS_MOSQUITTO, TlsSite

NOW = datetime.now(UTC)
pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TlsSite]:
    made = TlsSite(tmp_path)
    yield made
    made.stop()


def config_of(mqtt: MqttSettings, node: str = "orchard-1") -> NodeConfig:
    source = {"type": "synthetic"}
    return NodeConfig.model_validate(
        {"mqtt": mqtt.model_dump(), "nodes": [{"site": "orchard", "node": node, "sources": [source]}]}
    )


def certificate(mqtt: MqttSettings, node: str = "orchard-1", now: datetime = NOW) -> list[Finding]:
    config = config_of(mqtt, node)
    return list(check_certificate(config, config.nodes[0], now))


def test_a_good_certificate_and_one_that_ends(site: TlsSite) -> None:
    mqtt = site.enrol("orchard-1", days=60)
    assert_found(certificate(mqtt, now=NOW + timedelta(hours=12)), "ok", "of orchard-1, for 59 days")
    assert_found(certificate(mqtt, now=NOW + timedelta(days=50, hours=12)), "warning", "it ends in 9 days", "--renew")
    assert_found(certificate(mqtt, now=NOW + timedelta(days=61)), "failed", "it ended on", "--renew")
    assert_found(certificate(mqtt, now=NOW - timedelta(days=2)), "failed", "it begins on", "chronyc makestep")


def test_a_certificate_of_another_node_key_or_authority(site: TlsSite, tmp_path: Path) -> None:
    mqtt = site.enrol("orchard-1")
    assert_found(certificate(mqtt, "orchard-2"), "failed", "it names 'orchard-1', this node is 'orchard-2'", "enrol")
    foreign = TlsSite(tmp_path / "foreign").enrol("orchard-1")
    mixed = mqtt.model_copy(update={"ca_file": foreign.ca_file})
    assert_found(certificate(mixed), "failed", "not signed by the authority", "copy the folder")
    key = Path(mqtt.key_file)
    key.unlink()
    assert_found(certificate(mqtt), "failed", "no private key", "node request")
    write_key(key, new_key())
    assert_found(certificate(mqtt), "failed", "is not of the key", "--renew")


def test_files_that_are_missing_or_open_to_others(site: TlsSite) -> None:
    mqtt = site.enrol("orchard-1")
    Path(mqtt.key_file).chmod(0o644)
    good, told = certificate(mqtt)
    assert good.state == "ok"
    assert_found([told], "warning", "others than its owner may read", "chmod 600")
    Path(mqtt.cert_file).write_text("-----BEGIN")
    assert_found(certificate(mqtt)[:1], "failed", "cannot be read", "copy the folder")
    Path(mqtt.cert_file).unlink()
    assert_found(certificate(mqtt)[:1], "failed", "is not there", "copy the folder")
    half = mqtt.model_copy(update={"cert_file": ""})
    assert_found(certificate(half), "failed", "is not set", "mqtt.toml")


def test_without_tls_only_this_machine_is_safe() -> None:
    assert_found(certificate(MqttSettings()), "ok", "none is needed")
    assert_found(certificate(MqttSettings(host="hub.local")), "warning", "not encrypted", "hub init")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")
# paho leaves the socket of a failed handshake to the garbage collector, which closes it with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_what_a_broker_over_tls_says(site: TlsSite, tmp_path: Path) -> None:
    def broker(mqtt: MqttSettings, node: str = "orchard-1") -> list[Finding]:
        config = config_of(mqtt, node)
        return list(check_broker(config, config.nodes[0]))

    site.start()
    mqtt = site.enrol("orchard-1")
    assert_found(broker(mqtt), "ok", "logged in over TLS, publishing on infomae/v1/orchard/orchard-1/birth is taken")
    assert_found(broker(mqtt, "orchard-2"), "failed", "refuses a message", "")
    foreign = TlsSite(tmp_path / "foreign").enrol("orchard-1")
    untrusted = mqtt.model_copy(update={"ca_file": foreign.ca_file})
    assert_found(broker(untrusted), "failed", "the broker's certificate is not trusted", "mqtt.ca_file")
    expired = site.enrol("orchard-3", at=NOW - timedelta(days=40), days=30)
    assert_found(broker(expired, "orchard-3"), "failed", "has expired", "--renew")
    shutil.move(mqtt.ca_file, mqtt.ca_file + ".away")
    assert_found(broker(mqtt), "failed", "cannot read the file", "copy the folder")
