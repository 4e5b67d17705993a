"""What a node's TOML file may say. One file, one collecting and one detecting process, one or several nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from infomae_stream.config import Settings
from infomae_stream.errors import DataError
from infomae_stream.types import check_id


def _id(value: str) -> str:
    try:
        return check_id(value, "id")
    except DataError as e:
        raise ValueError(str(e)) from e


Id = Annotated[str, AfterValidator(_id)]
Port = Annotated[int, Field(ge=0, le=65535)]


class MqttSettings(Settings):
    host: str = "127.0.0.1"
    port: Port = 1883
    protocol: str = Field("auto", pattern="^(auto|5|3.1.1)$")
    username: str = ""
    password_file: str = ""
    ca_file: str = ""  # TLS is on when this is set
    cert_file: str = ""
    key_file: str = ""
    keepalive_s: int = Field(30, ge=5)

    def for_node(self, node: str) -> MqttSettings:
        """These settings with the node's id for `{node}` in cert_file and key_file: each node has its own."""
        names = {key: getattr(self, key).replace("{node}", node) for key in ("cert_file", "key_file")}
        return self.model_copy(update=names)


class MetricsSettings(Settings):
    host: str = "127.0.0.1"
    collect_port: Port = 9101
    detect_port: Port = 9102


class OutboxSettings(Settings):
    commit_interval_s: float = Field(1.0, gt=0, le=60)
    keep_s: float = Field(60.0, ge=0)  # acknowledged rows stay this long for the detector
    max_bytes: int = Field(2_000_000_000, ge=1_000_000)  # beyond this the oldest of the least important goes
    max_age_s: float = Field(0.0, ge=0)  # chunks that waited longer are shed; 0: however old
    reserve_bytes: int = Field(50_000_000, ge=0)  # free disk space into which the outbox does not grow


class UplinkSettings(Settings):
    max_inflight_bytes: int = Field(1_000_000, ge=10_000)
    resend_after_s: float = Field(10.0, gt=0)  # an unacknowledged record is sent again after this
    # Catching up, beside what is new: 5 x what a node with 8 kHz audio, 100 Hz seismic and IMU makes (17.6 kB/s), so
    # that an outage is made good in a fifth of its length and a thousand nodes at once bring a hub 88 MB/s. 0: no cap.
    max_bytes_per_s: int = Field(88_000, ge=0)
    start_jitter_s: float = Field(10.0, ge=0, le=600)  # after a reconnect a backlog waits a random time up to this


class DetectSettings(Settings):
    enabled: bool = True
    threads: int = Field(1, ge=1)
    runtime: str = "onnx"
    trusted_keys: list[str] = []  # files with one ed25519 public key each (PEM)
    max_lag_s: float = Field(20.0, gt=0)  # older windows are dropped (counted) when the node cannot keep up


class ClockSettings(Settings):
    """Where this node's time comes from. `system` asks the kernel; `declared` states it (recordings, tests)."""

    source: str = Field("system", pattern="^(system|chrony|gpsd|declared)$")
    gpsd_port: Port = 2947  # on this machine
    declared_source: str = "declared"
    offset_ms: float = 0.0  # error of this node's clock as it sits in the data (declared only)
    uncertainty_ms: float = 1.0
    synchronised: bool = True


class SheddingSettings(Settings):
    """For one stream, what goes first when there is no room; what is left out is as its kind and the outbox say."""

    priority: int | None = Field(None, ge=1, le=9)  # 1 goes first; acoustic has 3, every other kind 5
    max_age_s: float | None = Field(None, ge=0)


class NodeSettings(Settings):
    site: Id
    node: Id
    clock: ClockSettings = ClockSettings()
    shedding: dict[Id, SheddingSettings] = {}  # by stream
    # A source checks its own options (collectors/sources), so that the kernel knows no sensor.
    sources: list[dict[str, Any]] = Field(min_length=1)


class NodeConfig(Settings):
    base_dir: Path = Path(".")
    state_dir: str = "state"
    truth_log_dir: str = ""  # when set, each accepted record is also written here, for audits
    mqtt: MqttSettings = MqttSettings()
    metrics: MetricsSettings = MetricsSettings()
    outbox: OutboxSettings = OutboxSettings()
    uplink: UplinkSettings = UplinkSettings()
    detect: DetectSettings = DetectSettings()
    nodes: list[NodeSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> NodeConfig:
        names = [n.node for n in self.nodes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"node {twice[0]!r} stands twice")
        return self

    def path(self, relative: str) -> Path:
        """`relative`, seen from the folder of the configuration file."""
        return self.base_dir / relative

    def outbox_path(self, node: NodeSettings) -> Path:
        return self.path(self.state_dir) / node.site / node.node / "outbox.sqlite"

    @property
    def bundle_dir(self) -> Path:
        return self.path(self.state_dir) / "bundles"
