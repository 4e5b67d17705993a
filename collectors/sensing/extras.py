"""Libraries that only some sensors need: imported when the sensor is used, missed with the words that mend it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from infomae_stream.errors import SourceError


def extra(module: str, name: str, what: str) -> Any:
    """Import `module` of the extra `name`. Raises SourceError that says how to install it; `what` needs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        if e.name != module.split(".")[0]:
            raise
        raise SourceError(f"{what} need {e.name}", fix=f"pip install 'infomae-stream[{name}]'") from e
