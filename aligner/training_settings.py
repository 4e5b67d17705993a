"""The `[align.train]` table of a hub's configuration as the trainer's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.config import TrainConfig
from infomae_stream.config import validate
from infomae_stream.errors import ConfigError


def train_config(table: Mapping[str, Any], window_s: float, seed: int, where: str = "align.train") -> TrainConfig:
    """`table` checked; its seed is the hub's, its window the matcher's, unless it says so itself.

    Raises ConfigError for an unknown key, a bad value, or a window that is not the matcher's.
    """
    front_end = {"window_s": window_s, **table.get("front_end", {})}
    config = validate(
        {"seed": seed, **table, "front_end": front_end}, TrainConfig, where=where, prefix=("align", "train")
    )
    if config.front_end.window_s != window_s:
        raise ConfigError(
            f"align.train.front_end.window_s is {config.front_end.window_s}, matcher.window_s is {window_s}",
            where=where,
            fix="leave it out of align.train",
        )
    return config
