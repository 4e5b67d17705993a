"""The ed25519 pair: the hub signs bundles with the private key, nodes trust the public one. Both are PEM files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from infomae_stream.errors import ConfigError

PRIVATE_KEY_FILE: Final = "release.pem"
PUBLIC_KEY_FILE: Final = "release.pub"


def generate_keys() -> tuple[Ed25519PrivateKey, Ed25519PublicKey]:
    private_key = Ed25519PrivateKey.generate()
    return private_key, private_key.public_key()


def save_keys(directory: Path, private_key: Ed25519PrivateKey) -> tuple[Path, Path]:
    """Write release.pem (mode 0600) and release.pub into `directory`; return their paths.

    Raises ConfigError when one is there already: whoever loses a signing key loses all nodes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    private_path, public_path = directory / PRIVATE_KEY_FILE, directory / PUBLIC_KEY_FILE
    private_pem = private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = private_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for path, pem, mode in ((private_path, private_pem, 0o600), (public_path, public_pem, 0o644)):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as e:
            raise ConfigError("there is a key already", where=str(path), fix="give another folder") from e
        with open(descriptor, "wb") as f:
            f.write(pem)
            os.fsync(f.fileno())
    return private_path, public_path


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises ConfigError when the file is missing or is no ed25519 private key in PEM."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _bad_key(path, "private", e) from e
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(path, "private", "another kind of key")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Raises ConfigError when the file is missing or is no ed25519 public key in PEM."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as e:
        raise _bad_key(path, "public", e) from e
    if not isinstance(key, Ed25519PublicKey):
        raise _bad_key(path, "public", "another kind of key")
    return key


def _bad_key(path: Path, kind: str, cause: object) -> ConfigError:
    return ConfigError(
        f"no ed25519 {kind} key: {cause}", where=str(path), fix="make a pair with `infomae-stream bundle keygen DIR`"
    )
