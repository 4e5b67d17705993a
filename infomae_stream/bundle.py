"""What goes down to the nodes: encoders, head and their contract, in one signed file.

A bundle is an uncompressed zip (bundle_archive): manifest.json, manifest.sig, one encoder_<modality>.onnx a modality
and, in most, encoder_<modality>.int8.onnx beside it, head.onnx, golden.npz. The manifest (bundle_manifest) is canonical
JSON, signed with ed25519; it states sha256 and size of every file.
Legend: B golden windows, C channels, N samples, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from infomae_stream.bundle_archive import Member, pack, unpack
from infomae_stream.bundle_manifest import FORMAT, MAX_BUNDLE_BYTES, Manifest, ModalityContract, check_manifest
from infomae_stream.errors import BundleError
from infomae_stream.golden import Golden
from infomae_stream.onnx_weights import check_weights
from infomae_stream.signing_keys import generate_keys, load_private_key, load_public_key, save_keys
from infomae_stream.spectrogram import FrontEnd

__all__ = [
    "MAX_BUNDLE_BYTES",
    "REASONS",
    "Bundle",
    "BundleInfo",
    "Manifest",
    "ModalityContract",
    "generate_keys",
    "load_private_key",
    "load_public_key",
    "open_bundle",
    "read_bundle",
    "save_keys",
    "sync_directory",
    "write_bundle",
    "write_durably",
]

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
REASONS: Final = (
    "size",
    "truncated",
    "structure",
    "path",
    "signature",
    "hash",
    "expired",
    "older",
    "contract",
    "not_finite",
    "golden",
    "download",  # it could not be fetched whole
    "runtime",  # it verified, but failed while it served
    "slow",  # it verified, but took longer than its windows last
)


@dataclass(frozen=True, slots=True)
class BundleInfo:
    version: int
    sha256: str
    size: int
    path: Path


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `sha256` is that of the whole file; `files` are the members named by the manifest, as views
    of `content`."""

    manifest: Manifest
    sha256: str
    files: Mapping[str, bytes | memoryview]
    golden: Golden
    content: bytes

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @cached_property
    def front_ends(self) -> dict[str, FrontEnd]:
        return {name: FrontEnd.from_dict(c.front_end) for name, c in self.manifest.modalities.items()}

    def without_files(self) -> Bundle:
        """What is still of use once the graphs are loaded: a node has no memory to hold every weight twice."""
        return replace(self, files={}, content=b"")


def write_bundle(
    path: Path, manifest_fields: Mapping[str, Any], files: Mapping[str, bytes], private_key: Ed25519PrivateKey
) -> BundleInfo:
    """Sign and write a bundle to `path`, atomically and durably, after reading it back as a node would.

    manifest_fields: all of Manifest but `format` and `files`, which are filled in here.
    Raises BundleError when a node would refuse the result.
    """
    entries = {name: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for name, c in files.items()}
    manifest_bytes = canonical_json({**manifest_fields, "format": FORMAT, "files": entries})
    members = {MANIFEST: manifest_bytes, SIGNATURE: private_key.sign(manifest_bytes)}
    data = pack({**members, **{name: files[name] for name in sorted(files)}})
    bundle = read_bundle(data, [private_key.public_key()], now_ns=0, min_version=0, where=str(path))
    write_durably(path, data)
    return BundleInfo(bundle.version, bundle.sha256, len(data), path)


def open_bundle(
    path: Path, trusted_public_keys: Sequence[Ed25519PublicKey], *, now_ns: int, min_version: int
) -> Bundle:
    """Read and verify `path`; everything that a file alone can show has been checked when this returns.

    Left to the runtime that serves it: the graphs' own input and output shapes, and the golden vectors.
    Raises BundleError with a reason of REASONS.
    """
    where = str(path)
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_BUNDLE_BYTES + 1)
    except OSError as e:
        raise BundleError(f"cannot be read: {e.strerror}", reason="download", where=where) from e
    return read_bundle(data, trusted_public_keys, now_ns=now_ns, min_version=min_version, where=where)


def read_bundle(
    data: bytes, trusted_public_keys: Sequence[Ed25519PublicKey], *, now_ns: int, min_version: int, where: str
) -> Bundle:
    """As open_bundle, from bytes. The order matters: nothing unsigned is interpreted beyond the archive's headers."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"larger than {MAX_BUNDLE_BYTES} bytes", reason="size", where=where)
    members = {member.name: member for member in unpack(data, where)}
    manifest_bytes = _take(members, MANIFEST, where)
    _check_signature(manifest_bytes, _take(members, SIGNATURE, where), trusted_public_keys, where)
    manifest = _parse_manifest(manifest_bytes, where)
    _check_files(members, manifest, where)
    if manifest.expires_ns <= now_ns:
        raise BundleError("has expired", reason="expired", where=where, fix="release a newer one")
    if manifest.version < min_version:
        raise BundleError(
            f"version {manifest.version} is older than {min_version}, which was accepted before",
            reason="older",
            where=where,
            fix="to go back, release the older weights as a new version",
        )
    files = {name: members[name].content for name in manifest.members()}
    check_manifest(manifest, where)
    golden = Golden.load(files[manifest.golden], where)
    _check_golden_shapes(golden, manifest, where)
    for name in files:
        if name.endswith(".onnx"):
            check_weights(files[name], f"{where}: {name}")
    return Bundle(manifest, hashlib.sha256(data).hexdigest(), files, golden, data)


def canonical_json(fields: Mapping[str, Any]) -> bytes:
    """One byte form a value: sorted keys, no spaces, ASCII. Raises BundleError(not_finite) for NaN and infinity."""
    try:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    except ValueError as e:
        raise BundleError(f"manifest: {e}", reason="not_finite", where="bundle") from e


def _take(members: Mapping[str, Member], name: str, where: str) -> bytes:
    if name not in members:
        raise BundleError(f"has no {name}", reason="structure", where=where)
    return bytes(members[name].content)


def _check_signature(content: bytes, signature: bytes, keys: Sequence[Ed25519PublicKey], where: str) -> None:
    for key in keys:
        try:
            key.verify(signature, content)
        except InvalidSignature:
            continue
        return
    raise BundleError(
        f"not signed by any of the {len(keys)} trusted keys", reason="signature", where=where, fix="see trusted_keys"
    )


def _parse_manifest(content: bytes, where: str) -> Manifest:
    try:
        fields = json.loads(content)
        manifest = Manifest.model_validate(fields)
    except ValidationError as e:
        first = e.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"manifest: {dotted}: {first['msg']}", reason="contract", where=where) from e
    except (ValueError, RecursionError) as e:
        raise BundleError(f"manifest is not JSON: {e}", reason="contract", where=where) from e
    if canonical_json(fields) != content:
        raise BundleError("manifest is not in canonical form", reason="structure", where=where)
    return manifest


def _check_files(members: Mapping[str, Member], manifest: Manifest, where: str) -> None:
    """Exactly the files that the manifest names, in the one order, each with the stated size and sha256."""
    wanted = manifest.members()
    if tuple(members) != (MANIFEST, SIGNATURE, *wanted) or tuple(sorted(manifest.files)) != wanted:
        raise BundleError(f"members are not manifest, signature, {', '.join(wanted)}", reason="structure", where=where)
    for name, entry in manifest.files.items():
        content = members[name].content
        if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"{name} is not the file that was signed", reason="hash", where=where)
    for member in members.values():
        member.check_crc32(where)


def _check_golden_shapes(golden: Golden, manifest: Manifest, where: str) -> None:
    if set(golden.windows) != set(manifest.modalities):
        raise BundleError("golden windows are not those of the modalities", reason="contract", where=where)
    for name, contract in manifest.modalities.items():
        want = (golden.n_windows, len(contract.channels), contract.window_samples)
        if golden.windows[name].shape != want:
            shape = golden.windows[name].shape
            raise BundleError(f"golden windows of {name} are {shape}, want {want}", reason="contract", where=where)
    for name, scores_BK in golden.scores.items():
        if scores_BK.shape != (golden.n_windows, len(manifest.classes)):
            raise BundleError(f"golden scores of {name} are {scores_BK.shape}", reason="contract", where=where)


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` whole: temporary file, fsync, rename, fsync of the folder. A crash leaves the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
