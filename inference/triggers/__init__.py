"""Cheap looks at one stream, which tell whether the model is worth running. One file an implementation, one line here.

C channels, N samples.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from infomae_stream.config import Settings, validate
from infomae_stream.errors import ConfigError

TRIGGERS: Final[dict[str, str]] = {
    "energy": "inference.triggers.energy:EnergyTrigger",
    "sta_lta": "inference.triggers.sta_lta:StaLtaTrigger",
}


class Trigger(Protocol):
    """Made by `Class(options, rate_hz)`, for one stream."""

    Options: ClassVar[type[Settings]]

    def awake(self, start_ns: int, x_CN: NDArray[np.float32]) -> bool:
        """Whether something may be going on in this window, in physical units.

        Windows come in the order of their starts; those that overlap share samples, which count once. True also as
        long as the noise is not known: at first, and again after a hole or a clock that was set back.
        """


def check_options(raw: dict[str, Any], *, where: str, prefix: tuple[str, ...]) -> tuple[Settings, Any]:
    """The checked options and the class of a trigger; the key `type` names it. Raises ConfigError."""
    name = raw.get("type")
    if name not in TRIGGERS:
        dotted = ".".join((*prefix, "type"))
        raise ConfigError(f"{dotted}: {name!r} is no trigger; known: {', '.join(sorted(TRIGGERS))}", where=where)
    module, attribute = TRIGGERS[name].split(":")
    cls = getattr(import_module(module), attribute)
    rest = {key: value for key, value in raw.items() if key != "type"}
    return validate(rest, cls.Options, where=where, prefix=prefix), cls
