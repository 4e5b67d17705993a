"""Settings of training: frozen, unknown keys refused, every default a value that was measured on two cores."""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from infomae_stream.config import Settings


class FrontEndConfig(Settings):
    """Signal front end of every modality; `orientation="auto"` takes the gravity frame for six-channel IMUs."""

    window_s: float = 2.0
    interval_s: float = 0.4
    interval_hop_s: float = 0.2
    max_hz: float | None = 17.5
    orientation: Literal["auto", "none", "gravity", "gravity_only"] = "auto"
    content: Literal["complex", "magnitude"] = "magnitude"


class EncoderConfig(Settings):
    """Encoder by name in aligner/encoders; sizes of the preset. `patches`: of modalities whose patch is another."""

    name: str = "swin"
    patch: tuple[int, int] = (1, 2)
    patches: dict[str, tuple[int, int]] = Field(default_factory=dict)
    window: tuple[int, int] = (3, 4)
    width: int = Field(48, gt=0)
    depths: tuple[int, ...] = (2, 2)
    heads: int = Field(4, gt=0)
    skip: bool = True
    embedding_width: int = Field(128, ge=2)
    variance_share: float = Field(0.5, ge=0, le=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(0.1, ge=0, lt=1)

    def of(self, modality: str) -> Self:
        """What holds for one modality."""
        return self.model_copy(update={"patch": self.patches.get(modality, self.patch)})


class PretrainConfig(Settings):
    """Stage 1, masked pretraining (METHOD 2)."""

    epochs: int = Field(12, ge=1)
    batch: int = Field(64, ge=2)
    rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    mask_unit: tuple[int, int] = (3, 2)


class AlignConfig(Settings):
    """Stage 2 (METHOD 3). `options` belong to the objective and are checked by it."""

    objective: str = "infomae"
    steps: int = Field(250, ge=1)
    pair_batch: int = Field(64, ge=8)
    window_batch: int = Field(64, ge=8)
    sequence_length: int = Field(4, ge=2)
    shared_width: int = Field(64, ge=2)
    private_width: int = Field(32, ge=2)
    hidden_width: int = Field(128, ge=2)
    head_rate: float = Field(3e-4, gt=0)
    encoder_rate: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    gradient_norm: float = Field(5.0, gt=0)
    critic_rate: float = Field(3e-4, gt=0)
    critic_steps: int = Field(1, ge=1)
    critic_warm_up: int = Field(80, ge=0)
    view_copies: int = Field(4, ge=2)
    augmentations: tuple[str, ...] = ("scaling", "magnitude_warp", "time_warp", "jitter", "channel_dropout")
    start: Literal["cca", "ridge", "random"] = "ridge"
    start_ridge: float = Field(0.3, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


class HeadConfig(Settings):
    """Linear head: class-weighted multinomial logistic regression with an L2 penalty a weight."""

    l2: float = Field(1e-2, ge=0)
    iterations: int = Field(60, ge=1)


# Sizes of the InfoMAE paper's models (METHOD 1), on one-sided spectra. Whatever is set beside `preset` wins.
PRESETS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "small": {},
    "mod": {  # acoustic 8 kHz and seismic 100 Hz, 2 s; Nyquist's bin of the acoustic is left out, so that patches fit
        "front_end": {
            "interval_s": 0.2,
            "interval_hop_s": 0.2,
            "max_hz": 3999.0,
            "orientation": "none",
            "content": "complex",
        },
        "encoder": {
            "patch": (1, 1),
            "patches": {"acoustic": (1, 40)},
            "window": (3, 3),
            "width": 64,
            "depths": (2, 2, 4),
            "skip": False,
            "embedding_width": 256,
            "dropout": 0.2,
        },
        "pretrain": {"mask_unit": (3, 3)},
    },
    "har": {  # accelerometer, gyroscope, magnetometer, light at 50 Hz, windows of 5 s
        "front_end": {
            "window_s": 5.0,
            "interval_s": 1.0,
            "interval_hop_s": 0.5,
            "max_hz": None,
            "orientation": "none",
            "content": "complex",
        },
        "encoder": {
            "window": (3, 3),
            "width": 32,
            "depths": (2, 2, 2),
            "skip": False,
            "dropout": 0.2,
        },
        "pretrain": {"mask_unit": (3, 3)},
    },
}


class TrainConfig(Settings):
    """All of training. The same snapshot, config and thread count give the same model."""

    preset: Literal["small", "mod", "har"] = "small"
    seed: int = 0
    threads: int = Field(2, ge=1)
    front_end: FrontEndConfig = FrontEndConfig()
    encoder: EncoderConfig = EncoderConfig()
    pretrain: PretrainConfig = PretrainConfig()
    align: AlignConfig = AlignConfig()
    head: HeadConfig = HeadConfig()

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_preset(cls, raw: Any) -> Any:
        preset = raw.get("preset") if isinstance(raw, Mapping) else None
        if not isinstance(preset, str):
            return raw
        merged = dict(raw)
        for table, values in PRESETS.get(preset, {}).items():  # an unknown one is reported by its own field
            given = raw.get(table, {})
            if isinstance(given, Mapping):
                merged[table] = {**values, **given}
        return merged
