"""Encoders: a modality's interval spectrogram to one embedding. One module an encoder, one line here."""

from typing import Any

from aligner.registry import resolve

ENCODERS = {"swin": "aligner.encoders.swin:SwinEncoder"}


def encoder_class(name: str) -> Any:
    """Return the class of encoder `name`; raises ConfigError when there is none."""
    return resolve(ENCODERS, name, "train.encoder.name")
