"""What a hub's TOML file may say: ingest, maintenance of the lake, matcher, aligner, bundle server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from infomae_stream.config import Settings
from infomae_stream.node_config import Id, MqttSettings, Port


class HubMetrics(Settings):
    host: str = "127.0.0.1"
    ingest_port: Port = 9201
    align_port: Port = 9202
    maintain_port: Port = 9203


class LakeSettings(Settings):
    path: str = "lake"


class IngestSettings(Settings):
    commit_interval_s: float = Field(1.0, gt=0, le=60)
    commit_bytes: int = Field(32_000_000, ge=100_000, le=1_000_000_000)
    max_inflight_bytes: int = Field(128_000_000, ge=1_000_000)
    # Free disk space that commits must leave; left out: a hundredth of the disk, 500 MB at most.
    reserve_bytes: int | None = Field(None, ge=0)
    dead_letter_bytes: int = Field(50_000_000, ge=0)
    shared_subscription: str = ""  # group name; MQTT 5 brokers only


class MaintenanceSettings(Settings):
    """How the lake is kept in few files. A file may be written again log_fan_in(target_bytes / its size) times."""

    interval_s: float = Field(60.0, gt=0)
    target_bytes: int = Field(128_000_000, ge=100_000)
    fan_in: int = Field(8, ge=2, le=256)
    memory_bytes: int = Field(64_000_000, ge=1_000_000)  # decoded rows of one merge
    vacuum_interval_s: float = Field(3600.0, gt=0)
    grace_s: float = Field(86_400.0, ge=60)  # longer than the longest read, merge and training run
    keep_promoted_runs: int = Field(0, ge=0)  # whose table versions stay readable; 0: all


class RetentionSettings(Settings):
    """What the lake keeps; 0 is no limit. What is in a pair or has a label goes last."""

    max_bytes: int = Field(0, ge=0)
    max_age_days: float = Field(0.0, ge=0)
    keep_paired_days: float = Field(0.0, ge=0)
    keep_labelled_days: float = Field(0.0, ge=0)
    margin_s: float = Field(5.0, ge=0)  # kept on both sides of a pair or label


class MatcherSettings(Settings):
    """The grid and what a pair needs. Defaults suit body-worn IMUs."""

    modalities: list[Id] = Field(min_length=1)
    window_s: float = Field(2.0, gt=0)
    hop_s: float = Field(0.5, gt=0)
    min_coverage: float = Field(0.95, gt=0, le=1)
    max_gap_s: float = Field(0.2, gt=0)
    max_clock_uncertainty_s: float = Field(0.05, gt=0)
    max_clock_offset_s: float = Field(0.05, gt=0)
    interval_s: float = Field(2.0, gt=0)


class Trigger(Settings):
    """When to align: enough pairs, enough new ones since the last run, and none lately (a burst has settled)."""

    min_pairs: int = Field(100, ge=1)
    min_new_pairs: int = Field(100, ge=1)
    settle_s: float = Field(5.0, ge=0)
    min_interval_s: float = Field(0.0, ge=0)


class AlignSettings(Settings):
    work_dir: str = "aligner"
    seed: int = 0
    classes: list[Id] = Field(min_length=2)
    validation_sites: list[Id] = []  # gates read these people, vehicles, places; training never sees them
    test_sites: list[Id] = []  # reported only
    trigger: Trigger = Trigger()
    # Checked by aligner.train.TrainConfig, so that the kernel knows no objective.
    train: dict[str, Any] = {}


class GateSettings(Settings):
    min_gain_over_unaligned: float = 0.05  # macro-F1 on validation sites, first model
    min_gain_over_serving: float = 0.0  # a later candidate must be better by more than this
    min_effective_rank: float = 2.0
    max_int8_loss: float = Field(0.005, ge=0)  # macro-F1; int8 that costs more is left out of the bundle


class ReleaseSettings(Settings):
    signing_key: str = "keys/release.pem"  # ed25519 private key, PEM; made by `infomae-stream bundle keygen`
    expires_days: int = Field(90, ge=1)
    host: str = "127.0.0.1"
    port: Port = 9280
    advertised_url: str = ""  # http://hub:9280 as nodes see it; made of host and port when empty


class HubConfig(Settings):
    base_dir: Path = Path(".")
    mqtt: MqttSettings = MqttSettings()
    metrics: HubMetrics = HubMetrics()
    lake: LakeSettings = LakeSettings()
    ingest: IngestSettings = IngestSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    retention: RetentionSettings = RetentionSettings()
    matcher: MatcherSettings
    align: AlignSettings
    gates: GateSettings = GateSettings()
    release: ReleaseSettings = ReleaseSettings()

    def path(self, relative: str) -> Path:
        """`relative`, seen from the folder of the configuration file."""
        return self.base_dir / relative

    @property
    def lake_path(self) -> Path:
        return self.path(self.lake.path)

    @property
    def dead_letter_path(self) -> Path:
        return self.lake_path / "_dead_letters"
