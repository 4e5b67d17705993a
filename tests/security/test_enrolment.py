"""The authority and its commands, without a broker."""

from __future__ import annotations

import json
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from collectors.enrolment.authority import Authority
from collectors.enrolment.enrol import enrol, enrolled, revoke
from collectors.enrolment.site import Site, SiteOptions, access_rules
from infomae_stream.cli import app
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError, DataError
from infomae_stream.hub_config import HubConfig
from infomae_stream.key_files import signing_request
from infomae_stream.node_request import make_request

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path / "hub")
    made.initialise(SiteOptions(), NOW)
    return made


def request_of(node: str, folder: Path) -> Path:
    return make_request(node, folder / f"{node}.key").request_path


def crl_serials(site: Site) -> set[int]:
    crl = x509.load_pem_x509_crl((site.broker / "crl.pem").read_bytes())
    assert crl.is_signature_valid(x509.load_pem_x509_certificate((site.ca / "ca.pem").read_bytes()).public_key())  # type: ignore[arg-type]
    return {entry.serial_number for entry in crl}


def test_init_makes_everything_once_and_never_touches_it_again(site: Site) -> None:
    before = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    made, kept = site.initialise(SiteOptions(name="other", port=1), NOW + timedelta(days=1))
    assert made == [] and len(kept) == 12
    assert {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()} == before
    hub = load_config(site.folder / "hub.toml", HubConfig, {})
    assert (hub.mqtt.port, hub.path(hub.mqtt.key_file)) == (8883, site.tls / "hub.key")


def test_init_makes_again_only_what_is_missing(site: Site) -> None:
    key = (site.broker / "broker.key").read_bytes()
    authority = (site.ca / "ca.pem").read_bytes()
    (site.broker / "broker.pem").unlink()
    made, _ = site.initialise(SiteOptions(), NOW)
    assert made == [site.broker / "broker.pem"]
    assert (site.broker / "broker.key").read_bytes() == key and (site.ca / "ca.pem").read_bytes() == authority


def test_private_keys_are_for_their_owner_only(site: Site, tmp_path: Path) -> None:
    request_of("n1", tmp_path / "n1")
    keys = [*site.folder.rglob("*.key"), site.keys / "release.pem", tmp_path / "n1" / "n1.key"]
    assert len(keys) == 5
    for path in keys:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(site.ca.stat().st_mode) == 0o700


def test_openssl_finds_the_chain_in_order(site: Site, tmp_path: Path) -> None:
    _, folder = enrol(site, "n1", request_of("n1", tmp_path), days=3650, now=datetime.now(UTC))
    for purpose, certificate in (
        ("sslserver", site.broker / "broker.pem"),
        ("sslclient", site.tls / "hub.pem"),
        ("sslclient", folder / "n1.pem"),
    ):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-crl_check", "-no_check_time"]
        command += ["-CAfile", str(site.ca / "ca.pem"), "-CRLfile", str(site.broker / "crl.pem"), str(certificate)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr


def test_a_node_is_enrolled_once_and_again_only_when_told(site: Site, tmp_path: Path) -> None:
    request = request_of("n1", tmp_path)
    first, folder = enrol(site, "n1", request, days=10, now=NOW)
    assert sorted(p.name for p in folder.iterdir()) == ["ca.pem", "mqtt.toml", "n1.pem", "release.pub"]
    with pytest.raises(ConfigError, match=r"valid until 2026-06-11.*--renew"):
        enrol(site, "n1", request, days=10, now=NOW)
    second, _ = enrol(site, "n1", request, days=10, now=NOW, renew=True)
    assert first.serial != second.serial
    # After its last day no word is needed.
    enrol(site, "n1", request, days=10, now=NOW + timedelta(days=10, seconds=1))
    assert [c.state(NOW + timedelta(days=11)) for c in enrolled(site)] == ["expired", "expired", "valid"]


def test_superseded_certificates_can_be_revoked_alone(site: Site, tmp_path: Path) -> None:
    request = request_of("n1", tmp_path)
    first, _ = enrol(site, "n1", request, days=10, now=NOW)
    enrol(site, "n1", request, days=10, now=NOW, renew=True)
    assert [c.serial for c in revoke(site, "n1", now=NOW, superseded_only=True)] == [first.serial]
    assert crl_serials(site) == {first.serial}
    assert [c.state(NOW) for c in enrolled(site)] == ["revoked", "valid"]


def test_a_revoked_node_needs_a_new_key(site: Site, tmp_path: Path) -> None:
    request = request_of("n1", tmp_path)
    issued, _ = enrol(site, "n1", request, days=10, now=NOW)
    revoke(site, "n1", now=NOW)
    assert crl_serials(site) == {issued.serial}
    with pytest.raises(ConfigError, match="no certificate that is valid"):
        revoke(site, "n1", now=NOW)
    with pytest.raises(ConfigError, match="this key has been revoked"):
        enrol(site, "n1", request, days=10, now=NOW)
    (tmp_path / "n1.key").unlink()
    enrol(site, "n1", request_of("n1", tmp_path), days=10, now=NOW)


def test_each_revocation_list_is_dated_after_the_one_before(site: Site, tmp_path: Path) -> None:
    dates = []
    for i in range(3):
        enrol(site, f"n{i}", request_of(f"n{i}", tmp_path), days=10, now=NOW)
        revoke(site, f"n{i}", now=NOW)
        dates.append(x509.load_pem_x509_crl((site.broker / "crl.pem").read_bytes()).last_update_utc)
    assert dates == sorted(set(dates)) and dates[-1] <= NOW


def bad_requests(folder: Path) -> dict[str, tuple[bytes, str]]:
    good = make_request("n1", folder / "n1.key").request_path.read_bytes()
    csr = x509.load_pem_x509_csr(good)
    damaged = bytearray(csr.public_bytes(serialization.Encoding.DER))
    damaged[-3] ^= 1
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "n1")])
    weak = x509.CertificateSigningRequestBuilder().subject_name(name)
    other_curve = weak.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    two = x509.Name([*name, x509.NameAttribute(x509.NameOID.COMMON_NAME, "infomae.hub")])
    both = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(two)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return {
        "empty": (b"", "no signing request"),
        "text": (b"hello", "no signing request"),
        "truncated": (good[:200], "no signing request"),
        "huge": (good + b" " * 70_000, "too large"),
        "another's": (signing_request("n2", ec.generate_private_key(ec.SECP256R1())), "for 'n2', not for 'n1'"),
        "two names": (both.public_bytes(pem), "not for 'n1'"),
        "curve": (other_curve.public_bytes(pem), "P-256"),
        "signature": (x509.load_der_x509_csr(bytes(damaged)).public_bytes(pem), "signature"),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "huge", "another's", "two names", "curve", "signature"])
def test_a_bad_request_is_refused_and_leaves_nothing(site: Site, tmp_path: Path, kind: str) -> None:
    content, says = bad_requests(tmp_path)[kind]
    (tmp_path / "bad.csr").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        enrol(site, "n1", tmp_path / "bad.csr", days=10, now=NOW)
    assert enrolled(site) == [] and not (site.nodes / "n1").exists()


def test_no_node_can_take_the_hubs_name(site: Site, tmp_path: Path) -> None:
    for name in ("infomae.hub", "infomae.broker", "+", "a/b", "A"):
        with pytest.raises(DataError, match="is not an id"):
            enrol(site, name, tmp_path / "x.csr", days=10, now=NOW)


def test_what_else_a_request_asks_for_is_not_granted(site: Site, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "n1")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "n1.csr").write_bytes(greedy.public_bytes(serialization.Encoding.PEM))
    _, folder = enrol(site, "n1", tmp_path / "n1.csr", days=10, now=NOW)
    got = x509.load_pem_x509_certificate((folder / "n1.pem").read_bytes())
    assert not got.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        got.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    purposes = list(got.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert purposes == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_torn_line_of_the_index_is_what_was_never_handed_out(site: Site, tmp_path: Path) -> None:
    enrol(site, "n1", request_of("n1", tmp_path), days=10, now=NOW)
    index = site.ca / "index.jsonl"
    index.write_bytes(index.read_bytes() + b'{"event": "issued", "na')
    enrol(site, "n2", request_of("n2", tmp_path), days=10, now=NOW)
    assert [c.name for c in enrolled(site)] == ["n1", "n2"]
    index.write_bytes(b"nonsense\n" + index.read_bytes())
    with pytest.raises(ConfigError, match="line 1 cannot be read"):
        Authority(site.ca)


def test_the_rules_give_a_node_its_own_topics_only() -> None:
    patterns = [line for line in access_rules().splitlines() if line.startswith("pattern")]
    assert len(patterns) == 8 and all("/%u/" in line for line in patterns)
    assert "pattern write infomae/v1/+/%u/ack" not in patterns and "pattern read infomae/v1/+/%u/ack" in patterns


def test_the_commands_go_from_nothing_to_an_enrolled_node(tmp_path: Path) -> None:
    hub, node = str(tmp_path / "hub"), tmp_path / "n1"
    config = tmp_path / "node.toml"
    config.write_text(
        '[mqtt]\nkey_file = "tls/{node}.key"\n'
        '[[nodes]]\nsite = "s"\nnode = "n1"\nsources = [{type = "replay"}]\n'
        '[[nodes]]\nsite = "s"\nnode = "n2"\nsources = [{type = "replay"}]\n'
    )

    def told(*arguments: str, code: int = 0) -> dict[str, object]:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == code, result.output
        return dict(json.loads(result.output))

    assert len(told("hub", "init", "--dir", hub, "--host", "hub.example")["made"]) == 12  # type: ignore[arg-type]
    requests = told("node", "request", "--config", str(config))["requests"]
    assert [(r["node"], r["new_key"]) for r in requests] == [("n1", True), ("n2", True)]  # type: ignore[attr-defined]
    again = told("node", "request", "--node", "n1", "--dir", str(tmp_path / "tls"))["requests"]
    assert again[0]["new_key"] is False  # type: ignore[index]
    issued = told("hub", "enroll", "n1", "--request", str(tmp_path / "tls" / "n1.csr"), "--dir", hub, "--days", "9")
    assert issued["state"] == "valid" and issued["days_left"] == 8
    assert 'host = "hub.example"' in (Path(str(issued["folder"])) / "mqtt.toml").read_text()
    assert told("hub", "revoke", "n1", "--dir", hub)["revoked"]
    assert [n["state"] for n in told("hub", "nodes", "--dir", hub)["nodes"]] == ["revoked"]  # type: ignore[attr-defined]
    assert "n1" in CliRunner().invoke(app, ["hub", "nodes", "--dir", hub]).output
    assert not node.exists()
