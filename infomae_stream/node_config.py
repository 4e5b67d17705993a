"""What a node's TOML file may say. One file, one collecting and one detecting process, one or several nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

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
    resend_after_s: float = Field(10.0, gt=0)  # sent again when its ack is so much later than acks are now
    # Catching up, beside what is new: 5 x what a node with 8 kHz audio, 100 Hz seismic and IMU makes (17.6 kB/s), so
    # that an outage is made good in a fifth of its length and a thousand nodes at once bring a hub 88 MB/s. 0: no cap.
    max_bytes_per_s: int = Field(88_000, ge=0)
    start_jitter_s: float = Field(10.0, ge=0, le=600)  # after a reconnect a backlog waits a random time up to this


Probability = Annotated[float, Field(ge=0, le=1)]


class EventSettings(Settings):
    """How windows make an event (inference/events.py). Times are of the data; `idle_s` is of the detector's clock."""

    on: dict[str, Probability] = {}  # by class: score that begins an event; left out: the bundle's threshold
    off: dict[str, Probability] = {}  # by class: score that keeps it up; left out: off_ratio x on
    off_ratio: float = Field(0.7, ge=0, le=1)
    merge_gap_s: float = Field(0.5, ge=0)  # events of one class that are no further apart are one
    min_windows: int = Field(1, ge=1)  # fewer make no event
    cool_down_s: float = Field(0.0, ge=0)  # after an event, for its class
    max_s: float = Field(30.0, gt=0)  # a longer event is written in parts
    idle_s: float = Field(10.0, gt=0)  # what is open ends when no window came for so long

    @model_validator(mode="after")
    def _off_is_below_on(self) -> EventSettings:
        above = sorted(name for name in self.off.keys() & self.on.keys() if self.off[name] > self.on[name])
        if above:
            raise ValueError(f"off.{above[0]} is above on.{above[0]}: an event would end as it begins")
        return self


class DetectSettings(Settings):
    enabled: bool = True
    threads: int = Field(1, ge=1)
    runtime: str = "onnx"
    trusted_keys: list[str] = []  # files with one ed25519 public key each (PEM)
    max_lag_s: float = Field(20.0, gt=0)  # older windows are dropped (counted) when the node cannot keep up
    events: EventSettings = EventSettings()
    # A trigger checks its own options (inference/triggers), so that the kernel knows none.
    triggers: list[dict[str, Any]] = []
    precision: Literal["auto", "fp32", "int8"] = "auto"  # auto: int8 where the golden vectors pass with it
    trial_windows: int = Field(20, ge=10)  # a new bundle that fails or is slow within so many windows goes again
    max_realtime_factor: float = Field(1.0, gt=0)  # slow: takes more than this of the time that its windows leave


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


class HomeAssistantSettings(Settings):
    enabled: bool = False
    prefix: str = Field("homeassistant", pattern="^[A-Za-z0-9_/-]{1,100}$")  # Home Assistant's discovery prefix


class FuseSettings(Settings):
    """A node without sensors, which detects on the chunks of other nodes of its site (inference/fusion.py)."""

    nodes: list[Id] = Field(min_length=1)
    wait_s: float = Field(3.0, gt=0, le=600)  # of the data's time: who is further behind is not waited for
    silent_s: float = Field(10.0, gt=0)  # a node that says nothing for so long is told of


class NodeSettings(Settings):
    site: Id
    node: Id
    clock: ClockSettings = ClockSettings()
    shedding: dict[Id, SheddingSettings] = {}  # by stream
    fuse: FuseSettings | None = None
    # A source checks its own options (collectors/sources), so that the kernel knows no sensor.
    sources: list[dict[str, Any]] = Field([], validate_default=True)

    @field_validator("fuse")
    @classmethod
    def _listens_to_others(cls, fuse: FuseSettings | None, info: ValidationInfo) -> FuseSettings | None:
        if fuse is not None and info.data.get("node") in fuse.nodes:
            raise ValueError("a node cannot listen to itself")
        return fuse

    @field_validator("sources")
    @classmethod
    def _or_fuse(cls, sources: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
        if "fuse" in info.data and bool(sources) == (info.data["fuse"] is not None):
            raise ValueError("missing, or given beside fuse: one of them, sources or the nodes that it listens to")
        return sources


class NodeConfig(Settings):
    base_dir: Path = Path(".")
    state_dir: str = "state"
    truth_log_dir: str = ""  # when set, each accepted record is also written here, for audits
    mqtt: MqttSettings = MqttSettings()
    metrics: MetricsSettings = MetricsSettings()
    outbox: OutboxSettings = OutboxSettings()
    uplink: UplinkSettings = UplinkSettings()
    detect: DetectSettings = DetectSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
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
