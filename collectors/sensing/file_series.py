"""Several files of recordings as one: what a recorder that starts a file an hour leaves behind."""

from __future__ import annotations

from pathlib import Path

from collectors.recordings import Description, Recording, Recordings, open_recordings
from infomae_stream.errors import SourceError


def open_series(base_dir: Path, pattern: str, format: str = "", part: str = "") -> Recordings:
    """The file `pattern`, or all files that it matches, seen from base_dir. Raises SourceError."""
    path = base_dir / pattern
    if path.is_file() or not set(pattern) & set("*?["):
        return open_recordings(path, format, part)
    # glob takes no absolute pattern, and joining one has left base_dir behind.
    paths = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    files = [p for p in paths if p.is_file()]
    if not files:
        raise SourceError("no file is of this pattern", where=str(path))
    return FileSeries(files, format, part)


class FileSeries:
    """A recording keeps its name; where two files use the same, the file's name stands before it."""

    def __init__(self, paths: list[Path], format: str = "", part: str = "") -> None:
        self._places: dict[str, tuple[Recordings, str]] = {}
        self._files: list[Recordings] = []
        for path in paths:
            file = open_recordings(path, format, part)
            self._files.append(file)
            if _shape(file.description) != _shape(self._files[0].description):
                said = f"its channels, units or rate differ from those of {paths[0].name}"
                raise SourceError(said, where=str(path), fix="one source for each kind of file")
            for name in file.names:
                unique = name if name not in self._places else f"{path.stem}/{name}"
                if unique in self._places:
                    raise SourceError(f"there are two recordings {unique!r}", where=str(path))
                self._places[unique] = (file, name)
        self.names = tuple(self._places)
        self.description = self._files[0].description

    def load(self, name: str) -> Recording:
        file, inner = self._places[name]
        return file.load(inner)

    def close(self) -> None:
        for file in self._files:
            file.close()


def _shape(d: Description) -> tuple[object, ...]:
    return d.channels, d.units, d.sensitivity, d.rate_hz, d.kind, d.has_time
