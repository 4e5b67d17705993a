"""What a bundle's manifest says, and whether it fits itself.

`format` rises when a node of the release before could not read the manifest any more: it refuses what it does not know
and goes on serving what it has. Every format up to FORMAT is read.
1: the first. 2: an int8 graph a modality, and the scores of every subset of modalities; both may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from infomae_stream.errors import BundleError, ConfigError, DataError
from infomae_stream.spectrogram import FrontEnd
from infomae_stream.types import KINDS, StreamSpec, check_id
from infomae_stream.windower import Grid

FORMAT: Final = 2
MAX_BUNDLE_BYTES: Final = 256_000_000
HEAD, GOLDEN = "head.onnx", "golden.npz"


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
    encoder_int8: str | None = None  # the same graph with int8 matrix products: of all modalities, or of none
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

    @property
    def graphs(self) -> tuple[str, ...]:
        """The names of its encoder's files."""
        return (self.encoder,) if self.encoder_int8 is None else (self.encoder, self.encoder_int8)

    def fits(self, spec: StreamSpec) -> bool:
        """Whether the encoder may read this stream: same kind, rate, channels and units, in the same order."""
        same_units = not self.units or self.units == spec.units
        return same_units and (self.kind, self.rate_hz, self.channels) == (spec.kind, spec.rate_hz, spec.channels)


class SubsetScore(_Record):
    """Macro-F1 on the validation windows with only these modalities present; the same windows for every subset."""

    modalities: tuple[str, ...] = Field(min_length=1)
    macro_f1: float = Field(ge=0, le=1)
    windows: int = Field(ge=1)


class Manifest(_Record):
    """`thresholds`: score below which a class is not reported; a class without one is always reported."""

    format: int = Field(ge=1, le=FORMAT)
    version: int = Field(ge=1, lt=2**62)
    created_ns: int = Field(ge=0, lt=2**62)
    expires_ns: int = Field(ge=0, lt=2**62)
    classes: tuple[str, ...] = Field(min_length=2)
    thresholds: dict[str, float] = {}
    modalities: dict[str, ModalityContract] = Field(min_length=1)
    subsets: tuple[SubsetScore, ...] = ()
    head: str = HEAD
    golden: str = GOLDEN
    lineage: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    files: dict[str, FileEntry]

    def members(self) -> tuple[str, ...]:
        """The names of all files that the archive must hold beside manifest and signature, sorted."""
        encoders = {graph for contract in self.modalities.values() for graph in contract.graphs}
        return tuple(sorted({self.head, self.golden, *encoders}))

    @property
    def has_int8(self) -> bool:
        return all(contract.encoder_int8 is not None for contract in self.modalities.values())

    def missing_losses(self) -> dict[str, float]:
        """Modality -> macro-F1 lost when it alone is missing, as measured at release; empty when it was not."""
        measured = {frozenset(subset.modalities): subset.macro_f1 for subset in self.subsets}
        everything = frozenset(self.modalities)
        if everything not in measured:
            return {}
        without = {name: measured.get(everything - {name}) for name in sorted(everything)}
        return {name: measured[everything] - rest for name, rest in without.items() if rest is not None}


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises BundleError(contract) for a manifest that follows the schema but does not fit itself."""

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
    if len({c.encoder_int8 is None for c in manifest.modalities.values()}) != 1:
        raise refuse("some modalities have an int8 graph and some have none")
    subsets = [frozenset(subset.modalities) for subset in manifest.subsets]
    if len(set(subsets)) != len(subsets) or not frozenset().union(*subsets) <= set(manifest.modalities):
        raise refuse("subsets repeat, or name an unknown modality")
    for name, contract in manifest.modalities.items():
        _check_modality(name, contract, refuse)


def _check_modality(name: str, contract: ModalityContract, refuse: Callable[[str], BundleError]) -> None:
    for graph, want in zip(contract.graphs, (f"encoder_{name}.onnx", f"encoder_{name}.int8.onnx"), strict=False):
        if graph != want:
            raise refuse(f"an encoder of modalities.{name} is {graph!r}, want {want}")
    if contract.units and len(contract.units) != len(contract.channels):
        raise refuse(f"modalities.{name}.units needs one entry a channel")
    try:
        spec = FrontEnd.from_dict(contract.front_end).spec
    except (ConfigError, KeyError, TypeError, ValueError) as e:
        raise refuse(f"modalities.{name}.front_end: {e}") from e
    read = (spec.rate_hz, spec.window_samples, spec.channels)
    if read != (contract.rate_hz, contract.window_samples, len(contract.channels)):
        raise refuse(f"modalities.{name}: front end reads another rate, window or channel count")
