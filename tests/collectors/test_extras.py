"""What only some sensors need is imported when they are used, and missed with the command that mends it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest

from collectors.recordings import FORMATS, open_recordings
from collectors.sensing.extras import extra
from collectors.sources import SOURCES
from infomae_stream.cli import EXTRA_OF
from infomae_stream.errors import SourceError
from tests.sensor_rig import Rig

OPTIONAL = ("sounddevice", "soundfile", "smbus2", "obspy", "pyarrow", "matplotlib", "scipy", "onnxruntime")


def test_no_module_of_a_source_or_a_format_imports_what_only_its_use_needs() -> None:
    modules = [entry.split(":")[0] for entry in (*SOURCES.values(), *FORMATS.values())]
    program = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(" ".join(m for m in {OPTIONAL!r} if m in sys.modules) or "none")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.strip() == "none", ended.stderr


class Missing(MetaPathFinder):
    """Lets the import of one library fail as on a machine that does not have it."""

    def __init__(self, library: str) -> None:
        self._library = library

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == self._library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


USES: dict[str, Callable[[Path], object]] = {
    "sounddevice": lambda folder: Rig(folder).make(type="alsa"),
    "smbus2": lambda folder: Rig(folder).make(type="i2c", chip="mpu6050"),
    "soundfile": lambda folder: open_recordings(folder / "a.flac"),
    "obspy": lambda folder: open_recordings(folder / "a.mseed"),
}


@pytest.mark.parametrize("library", USES)
def test_a_missing_library_names_the_extra_that_brings_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(library), *sys.meta_path])
    for name in ("a.flac", "a.mseed"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=rf"need {library}; pip install 'infomae-stream\[{EXTRA_OF[library]}\]'"):
        USES[library](tmp_path)


def test_a_library_that_is_there_but_broken_is_not_called_missing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "broken_library.py").write_text("import something_that_nobody_has\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="something_that_nobody_has"):
        extra("broken_library", "audio", "tests")
