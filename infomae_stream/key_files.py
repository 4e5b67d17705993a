"""Private keys, signing requests and certificates as PEM files: how they are made, written and read.

Node and hub both need this; `cryptography` is imported here, so a process without TLS does not import this module.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infomae_stream.errors import ConfigError

PEM: Final = serialization.Encoding.PEM


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Mode 0600 from its first moment. Raises ConfigError when there is a file already."""
    pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_exclusively(path, pem, 0o600)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises ConfigError when the file is missing, or holds no P-256 private key in PEM."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ConfigError(f"no private key: {e}", where=str(path)) from e
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("not a key of the curve P-256", where=str(path))
    return key


def signing_request(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request (PEM) for a certificate with the common name `name`; its signature proves who has the key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(distinguished_name(name))
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM)


def distinguished_name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def key_digest(public_key: Any) -> str:
    """sha256 of a public key, hexadecimal."""
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def certificate_expiry(path: Path) -> datetime:
    """When a certificate ends (aware, UTC). Raises ConfigError when the file holds none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as e:
        raise ConfigError(f"no certificate: {e}", where=str(path)) from e


def write_exclusively(path: Path, content: bytes, mode: int) -> None:
    """Write a new file, all of it or nothing, on disk when this returns. Raises ConfigError when there is one."""
    temporary = _written(path, content, mode)
    try:
        os.link(temporary, path)
    except FileExistsError as e:
        raise ConfigError("there is a file already", where=str(path), fix="it is never overwritten") from e
    finally:
        temporary.unlink()
    _sync_folder(path)


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step, so that who reads it meanwhile gets the old or the new one. Raises OSError."""
    _written(path, content, mode).replace(path)
    _sync_folder(path)


def _written(path: Path, content: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    return temporary


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
