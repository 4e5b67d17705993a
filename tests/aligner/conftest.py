from __future__ import annotations

from pathlib import Path

import pytest

from infomae_stream.clock import ManualClock
from storage.lake import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", ManualClock())
