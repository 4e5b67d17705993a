"""Channels of a seismic station, as the configuration describes them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from collectors.sources import SourceContext
from infomae_stream.config import Settings
from infomae_stream.types import StreamId, StreamSpec


class SeismicChannel(Settings):
    """sensitivity: counts per unit, from the station's own response file; without it the unit stays {count}."""

    kind: str = "seismic"
    rate_hz: float = Field(100.0, gt=0)
    sensitivity: float = Field(1.0, gt=0)
    unit: str = "{count}"
    modality: str = ""


def _codes(channels: dict[str, SeismicChannel]) -> dict[str, SeismicChannel]:
    for code in channels:
        if not re.fullmatch("[A-Z0-9]{3}", code):
            raise ValueError(f"{code!r} is no channel code; write one like EHZ")
    return channels


Channels = Annotated[dict[str, SeismicChannel], Field(min_length=1), AfterValidator(_codes)]


class StationOptions(Settings):
    """A station's SEED ids; one stream a channel, named after it."""

    network: str = Field("AM", pattern="^[A-Z0-9]{1,2}$")
    station: str = Field(pattern="^[A-Z0-9]{1,5}$")
    location: str = Field("00", pattern="^[A-Z0-9]{0,2}$")
    channels: Channels = {"EHZ": SeismicChannel()}
    clock_uncertainty_ms: float = Field(10.0, ge=0)  # of the station's own clock; a sample, as Shakes keep it by NTP

    def spec(self, code: str, context: SourceContext) -> StreamSpec:
        """The stream of channel `code`."""
        channel = self.channels[code]
        return StreamSpec(
            id=StreamId(context.site, context.node, code.lower()),
            kind=channel.kind,
            rate_hz=channel.rate_hz,
            channels=(code,),
            units=(channel.unit,),
            sensitivity=(channel.sensitivity,),
            modality=channel.modality,
            seed_id=f"{self.network}.{self.station}.{self.location}.{code}",
        )
