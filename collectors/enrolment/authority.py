"""A site's certificate authority: one folder with its key, its certificate, an index of what it signed, and the CRL.

Keys are on the curve P-256 with SHA-256: mosquitto, OpenSSL from 1.0.2 on, Python's ssl and secure elements all take
them, which is not true of ed25519. Revocation is by list: the CRL stays valid as long as the authority does, so that a
hub that nobody looks after does not shut every node out on the day a list expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from collectors.enrolment.index import Index, Issued
from infomae_stream.errors import ConfigError
from infomae_stream.key_files import (
    PEM,
    distinguished_name,
    key_digest,
    load_key,
    new_key,
    write_exclusively,
    write_key,
    write_whole,
)

CA_DAYS: Final = 3650
# A node whose clock is a little behind the hub's must be able to use its certificate at once.
_BACKDATED: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a certificate is for: `server` names the hosts it may stand for, a client has none."""

    server: Sequence[str] = ()


class Authority:
    """Signs certificates and keeps the index and the CRL in step. One process at a time. `now` is aware UTC.

    Every certificate stands durable in the index before it exists anywhere else, so that each can be revoked.
    """

    def __init__(self, folder: Path) -> None:
        """Open the authority in `folder`. Raises ConfigError when there is none, or its files cannot be read."""
        self.folder = folder
        try:
            self.certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        except (OSError, ValueError) as e:
            raise ConfigError(
                f"no certificate authority: {e}", where=str(folder), fix="make one with `infomae-stream hub init`"
            ) from e
        self._key = load_key(folder / "ca.key")
        self.index = Index(folder / "index.jsonl")

    @property
    def certificate_path(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def crl_path(self) -> Path:
        return self.folder / "crl.pem"

    @classmethod
    def create(cls, folder: Path, name: str, now: datetime) -> Authority:
        """Make the certificate in `folder` (mode 0700), and the key unless it is there: an earlier call may have died.

        Raises ConfigError when there is a certificate.
        """
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        if not (folder / "ca.key").exists():
            write_key(folder / "ca.key", new_key())
        key = load_key(folder / "ca.key")
        subject = distinguished_name(name)
        certificate = (
            _builder(subject, subject, key.public_key(), now, timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_exclusively(folder / "ca.pem", certificate.public_bytes(PEM), 0o644)
        return cls(folder)

    def issue(
        self, name: str, public_key: CertificatePublicKeyTypes, usage: Usage, valid_for: timedelta, now: datetime
    ) -> bytes:
        """A certificate (PEM) with the common name `name`; it never outlives the authority's own."""
        until = min(now + valid_for, self.certificate.not_valid_after_utc)
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if usage.server else ExtendedKeyUsageOID.CLIENT_AUTH
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(distinguished_name(name), self.certificate.subject, public_key, now, until - now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(issuer_id, critical=False)
        )
        if usage.server:
            names = [_alternative_name(host) for host in usage.server]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        self.index.add_issued(
            Issued(
                name=name,
                serial=certificate.serial_number,
                key=key_digest(public_key),
                issued=now,
                expires=certificate.not_valid_after_utc,
            )
        )
        return certificate.public_bytes(PEM)

    def revoke(self, serials: Sequence[int], now: datetime) -> None:
        """Put these certificates on the CRL, durably. Naming one again changes nothing."""
        for serial in serials:
            if not self.index.is_revoked(serial):
                self.index.add_revoked(serial, now)
        self.write_crl(now)

    def write_crl(self, now: datetime) -> None:
        """Sign the list of all revoked certificates anew.

        OpenSSL keeps the first of two lists with the same date, to the second, and mosquitto keeps the old list beside
        the new one when it reloads. So each list is dated later than the one before, starting an hour back, so that
        none lies in a broker's future.
        """
        dated = now - _BACKDATED
        if self.crl_path.exists():
            before = x509.load_pem_x509_crl(self.crl_path.read_bytes())
            dated = max(dated, before.last_update_utc + timedelta(seconds=1))
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(dated)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(self.index.revisions), critical=False)
            .add_extension(issuer_id, critical=False)
        )
        for serial, at in self.index.revoked():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        write_whole(self.crl_path, builder.sign(self._key, hashes.SHA256()).public_bytes(PEM), 0o644)


def check_request(pem: bytes, name: str, where: str) -> CertificatePublicKeyTypes:
    """The public key of a signing request that asks for `name`, and proves that its sender has the private key.

    Raises ConfigError: no request, a signature that does not fit, another name, a key that is not P-256. Whatever else
    a request asks for (other names, the right to sign) is left out of the certificate.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        signed, key = request.is_signature_valid, request.public_key()
        names = [str(a.value) for a in request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    except (ValueError, TypeError, UnicodeError) as e:
        raise ConfigError(
            f"no signing request: {str(e)[:200]}", where=where, fix="make one with `infomae-stream node request`"
        ) from e
    if not signed:
        raise ConfigError("the request's signature does not fit its key", where=where, fix="copy the file again")
    if names != [name]:
        raise ConfigError(
            f"the request is for {', '.join(names)[:200] or 'nobody'!r}, not for {name!r}",
            where=where,
            fix="a certificate's common name is the node's id; is this the right file?",
        )
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("the request's key is not of the curve P-256", where=where)
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Any, now: datetime, valid_for: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + valid_for)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as e:
        raise ConfigError(f"{host!r} is no host name: {e}", where="hub init --host") from e
