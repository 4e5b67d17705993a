"""miniSEED through obspy (extra `seismo`), whose errors are of every kind."""

from __future__ import annotations

import io
from typing import Any

from collectors.sensing.extras import extra
from infomae_stream.errors import SourceError


def load_obspy() -> Any:
    """The library. Raises SourceError that says how to install it."""
    return extra("obspy", "seismo", "miniSEED and SeedLink")


def read_miniseed(data: bytes, where: str) -> Any:
    """obspy's Stream of the traces in `data`. Raises SourceError when it is no miniSEED."""
    try:
        return load_obspy().read(io.BytesIO(data), format="MSEED")
    except SourceError:
        raise
    except Exception as e:  # obspy and its C library raise what they happen to
        raise SourceError(f"cannot be read as miniSEED: {str(e)[:200]}", where=where) from e
