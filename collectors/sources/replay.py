"""Recordings played back as if they came from a sensor; the formats stand in collectors/recordings."""

from __future__ import annotations

from typing import ClassVar

from collectors.sensing.file_series import open_series
from collectors.sensing.playback import Playback, PlaybackOptions
from collectors.sources import SourceContext
from infomae_stream.config import Settings


class ReplayOptions(PlaybackOptions):
    format: str = ""  # of collectors.recordings.FORMATS; found by the file's suffix when it is left out
    part: str = ""  # which of several streams in the file


class ReplaySource(Playback):
    """`path` may be a pattern (audio/*.wav): then its files follow each other in the order of their names."""

    Options: ClassVar[type[Settings]] = ReplayOptions

    def __init__(self, options: ReplayOptions, context: SourceContext) -> None:
        file = open_series(context.base_dir, options.path, options.format, options.part)
        super().__init__(file, options, context, str(context.base_dir / options.path))
