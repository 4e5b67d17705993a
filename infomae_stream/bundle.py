"""What goes down to the nodes: encoders, head and their contract, in one signed file.

A bundle is an uncompressed zip (bundle_archive): manifest.json, manifest.sig, one encoder_<modality>.onnx a modality,
head.onnx, golden.npz. The manifest is canonical JSON, signed with ed25519; it states sha256 and size of every file.
Legend: B golden windows, C channels, N samples, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from infomae_stream.bundle_archive import Member, pack, unpack
from infomae_stream.errors import BundleError, ConfigError, DataError
from infomae_stream.golden import Golden
from infomae_stream.onnx_weights import check_weights
from infomae_stream.signing_keys import generate_keys, load_private_key, load_public_key, save_keys
from infomae_stream.spectrogram import FrontEnd
from infomae_stream.types import KINDS, StreamSpec, check_id
from infomae_stream.windower import Grid

__all__ = [
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

FORMAT: Final = 1
MAX_BUNDLE_BYTES: Final = 256_000_000
MANIFEST, SIGNATURE, HEAD, GOLDEN = "manifest.json", "manifest.sig", "head.onnx", "golden.npz"
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
)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Record):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MAX_BUNDLE_BYTES)


class ModalityContract(_Record):
    """What a stream must be for its encoder, and how its windows are cut."""

    kind: str
    rate_hz: float = Field(gt=0, le=1e6)
    channels: tuple[str, ...] = Field(min_length=1, max_length=64)
    units: tuple[str, ...] = ()  # not compared when empty
    window_s: float = Field(gt=0, le=3600)
    hop_s: float = Field(gt=0, le=3600)
    min_coverage: float = Field(ge=0, le=1)
    max_gap_s: float = Field(gt=0)
    front_end: dict[str, Any]
    encoder: str
    dim: int = Field(ge=1, le=65536)

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        return kind

    @property
    def grid(self) -> Grid:
        return Grid(self.window_s, self.hop_s, self.max_gap_s)

    @property
    def window_samples(self) -> int:
        return round(self.window_s * self.rate_hz)

    def fits(self, spec: StreamSpec) -> bool:
        """Whether the encoder may read this stream: same kind, rate, channels and units, in the same order."""
        same_units = not self.units or self.units == spec.units
        return same_units and (self.kind, self.rate_hz, self.channels) == (spec.kind, spec.rate_hz, spec.channels)


class Manifest(_Record):
    """`thresholds`: score below which a class is not reported; a class without one is always reported."""

    format: int = Field(ge=FORMAT, le=FORMAT)
    version: int = Field(ge=1, lt=2**62)
    created_ns: int = Field(ge=0, lt=2**62)
    expires_ns: int = Field(ge=0, lt=2**62)
    classes: tuple[str, ...] = Field(min_length=2)
    thresholds: dict[str, float] = {}
    modalities: dict[str, ModalityContract] = Field(min_length=1)
    head: str = HEAD
    golden: str = GOLDEN
    lineage: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    files: dict[str, FileEntry]

    def members(self) -> tuple[str, ...]:
        """The names of all files that the archive must hold beside manifest and signature, sorted."""
        encoders = {contract.encoder for contract in self.modalities.values()}
        return tuple(sorted({self.head, self.golden, *encoders}))


@dataclass(frozen=True, slots=True)
class BundleInfo:
    version: int
    sha256: str
    size: int
    path: Path


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `sha256` is that of the whole file; `files` are the members named by the manifest."""

    manifest: Manifest
    sha256: str
    files: Mapping[str, bytes]
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
    _check_contract(manifest, where)
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
    return members[name].content


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


def _check_contract(manifest: Manifest, where: str) -> None:
    def refuse(what: str) -> BundleError:
        return BundleError(what, reason="contract", where=where)

    try:
        for name in (*manifest.classes, *manifest.modalities):
            check_id(name, "class or modality")
    except DataError as e:
        raise refuse(str(e)) from e
    if len(set(manifest.classes)) != len(manifest.classes) or not set(manifest.thresholds) <= set(manifest.classes):
        raise refuse("classes repeat, or a threshold names an unknown class")
    if len({(c.window_s, c.hop_s, c.dim) for c in manifest.modalities.values()}) != 1:
        raise refuse("modalities differ in window_s, hop_s or dim, so that their embeddings cannot be averaged")
    for name, contract in manifest.modalities.items():
        if contract.encoder != f"encoder_{name}.onnx":
            raise refuse(f"modalities.{name}.encoder is {contract.encoder!r}, want encoder_{name}.onnx")
        if contract.units and len(contract.units) != len(contract.channels):
            raise refuse(f"modalities.{name}.units needs one entry a channel")
        try:
            spec = FrontEnd.from_dict(contract.front_end).spec
        except (ConfigError, KeyError, TypeError, ValueError) as e:
            raise refuse(f"modalities.{name}.front_end: {e}") from e
        if (spec.rate_hz, spec.window_samples, spec.channels) != (
            contract.rate_hz,
            contract.window_samples,
            len(contract.channels),
        ):
            raise refuse(f"modalities.{name}: front end reads another rate, window or channel count")


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
