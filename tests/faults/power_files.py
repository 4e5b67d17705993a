"""A model of a disk under a power cut: what was written and not synced may be lost, torn or out of order.

`Disk` keeps, for one folder, every write, truncation, change of a name and sync in the order in which the program made
them. `after_cut` makes one of the states that a machine may wake up with when the power went after `position` of these:

- bytes written since the file's last sync survive sector by sector, each or not, in any combination; a file may be as
  long as it was meant to be and hold zeros;
- a name made, replaced or removed since its folder's last sync is in any of the states that it went through, each name
  by itself: a rename may have done half, a name may be there before its bytes or never;
- what was synced is there. A file's sync says nothing of its name, a folder's nothing of what its names lead to.

That is harsher than ext4 with its defaults, and what POSIX promises. Python's own file operations come from
`power_calls`, SQLite's from `power_sqlite`. What others write (deltalake's checkpoints) is taken in, as unsynced, when
a sync or a rename meets it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = 0
STYLES: Final = ("nothing", "everything", "names", "bytes", "any")


@dataclass(frozen=True, slots=True)
class Write:
    node: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Name:
    """`name` in `folder` leads to `node` from now on; to nothing when that is None."""

    folder: int
    name: str
    node: int | None


@dataclass(frozen=True, slots=True)
class Sync:
    node: int


Operation = Write | Truncate | Name | Sync


@dataclass(frozen=True, slots=True)
class Harm:
    """How a power cut treats what was not synced; `sector`: bytes that are written whole or not at all.

    nothing: nothing of it survives. everything: all does, as after a kill. names, bytes: all of one sort and nothing
    of the other. any: each by chance.
    """

    style: str
    sector: int
    seed: int

    @classmethod
    def drawn(cls, rng: random.Random) -> Harm:
        return cls(rng.choice((*STYLES, "any", "any")), rng.choice((512, 4096)), rng.getrandbits(32))


@dataclass(slots=True)
class _File:
    synced: bytes = b""
    pending: list[Write | Truncate] = field(default_factory=list)

    def live(self) -> bytes:
        content = bytearray(self.synced)
        for op in self.pending:
            _apply(content, op)
        return bytes(content)


@dataclass(slots=True)
class _Folder:
    synced: dict[str, int] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)
    pending: dict[str, list[int | None]] = field(default_factory=dict)


Node = _File | _Folder


class Disk:
    """`root` is the real folder where the program works; it stands for a file system that is there already."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal: list[Operation] = []
        self._base: dict[int, Node] = {ROOT: _Folder()}
        self._nodes: dict[int, Node] = {ROOT: _Folder()}
        self._real: dict[int, int] = {}  # inode of the file system beneath, for files made by others
        self._made: dict[int, bool] = {ROOT: True}  # node -> is it a folder

    @property
    def position(self) -> int:
        """How many operations there were since the last power cut."""
        return len(self.journal)

    # -- what the program does -----------------------------------------------------------------------------------------

    def covers(self, path: str | os.PathLike[str]) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self.root)

    def node(self, path: str | os.PathLike[str]) -> int | None:
        """The node that a path leads to."""
        found = ROOT
        for part in Path(os.path.abspath(path)).relative_to(self.root).parts:
            folder = self._nodes[found]
            if not isinstance(folder, _Folder) or part not in folder.live:
                return None
            found = folder.live[part]
        return found

    def make(self, path: str | os.PathLike[str], *, folder: bool = False) -> int:
        """The node at `path`, made when there is none."""
        node = self.node(path)
        if node is None:
            node = self._new(folder)
            self.name(path, node)
        return node

    def name(self, path: str | os.PathLike[str], node: int | None) -> None:
        parent, name = os.path.split(os.path.abspath(path))
        self._do(Name(self._at(parent), name, node))

    def write(self, node: int, offset: int, content: bytes) -> None:
        self._do(Write(node, offset, content))

    def truncate(self, node: int, size: int) -> None:
        self._do(Truncate(node, size))

    def sync(self, node: int) -> None:
        self._do(Sync(node))

    def move(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        node = self._at(source)
        self.name(target, node)
        self.name(source, None)

    def sync_path(self, path: str | os.PathLike[str]) -> None:
        """A sync through a descriptor; what others did to the file or the folder meanwhile is taken in before."""
        self.notice(Path(path) if os.path.isdir(path) else Path(path).parent)
        node = self._at(path)
        file = self._nodes[node]
        if isinstance(file, _File) and (content := Path(path).read_bytes()) != file.live():
            self._overwrite(node, content)
        self.sync(node)

    def notice_parent(self, path: str | os.PathLike[str]) -> None:
        self.notice(Path(os.path.abspath(path)).parent)

    def notice(self, folder: Path) -> None:
        """Take in names that somebody made, replaced or removed in `folder` without our seeing it."""
        at = self.node(folder)
        if at is None:
            self.notice(folder.parent)
            at = self._at(folder)
        here = self._nodes[at]
        assert isinstance(here, _Folder)
        with os.scandir(folder) as entries:
            real = {e.name: e for e in entries if not e.name.endswith("-shm")}
        for name, entry in real.items():
            node = here.live.get(name)
            if node is None or self._real.setdefault(node, entry.inode()) != entry.inode():
                node = self._new(entry.is_dir())
                self._real[node] = entry.inode()
                if entry.is_file():
                    self._overwrite(node, Path(entry.path).read_bytes())
                self.name(entry.path, node)
        for name in here.live.keys() - real.keys():
            self.name(folder / name, None)

    def told(self) -> list[tuple[str, str, int]]:
        """The journal as (what, path below the root, bytes): for comparing it with what the kernel was asked to do."""
        paths = {ROOT: Path()}
        events = []
        for op in self.journal:
            if isinstance(op, Name):
                path = paths[op.folder] / op.name
                events.append(("gone" if op.node is None else "name", str(path), 0))
                if op.node is not None:
                    paths[op.node] = path
            elif isinstance(op, Write):
                events.append(("write", str(paths[op.node]), len(op.content)))
            elif isinstance(op, Truncate):
                events.append(("truncate", str(paths[op.node]), op.size))
            else:
                events.append(("sync", str(paths[op.node]), 0))
        return events

    # -- what survives -------------------------------------------------------------------------------------------------

    def after_cut(self, position: int, harm: Harm, root: Path) -> Disk:
        """Make in the empty `root` what a cut after `position` operations leaves; all of it is durable from then on."""
        nodes = self._replayed(position)
        rng = random.Random(harm.seed)
        disk = Disk(root)
        survivors = disk._base = {}
        waiting = [ROOT]
        while waiting:
            at = waiting.pop()
            if at in survivors:
                continue
            node = nodes[at]
            if isinstance(node, _File):
                survivors[at] = _File(_surviving_bytes(node, harm, rng))
            else:
                names = _surviving_names(node, harm, rng)
                survivors[at] = _Folder(names, dict(names))
                waiting += names.values()
        disk._made = {at: isinstance(node, _Folder) for at, node in survivors.items()}
        disk._nodes = disk._replayed(0)
        disk._write_out()
        return disk

    def after_kill(self, root: Path) -> Disk:
        """The same disk at another place, as a new process finds it: unsynced things are there, and still unsynced."""
        disk = Disk(root)
        disk.journal, disk._base, disk._made = list(self.journal), self._base, dict(self._made)
        disk._nodes = disk._replayed(len(disk.journal))
        disk._write_out()
        return disk

    # -- inside --------------------------------------------------------------------------------------------------------

    def _at(self, path: str | os.PathLike[str]) -> int:
        node = self.node(path)
        assert node is not None, f"{path} was made behind the model's back"
        return node

    def _new(self, folder: bool) -> int:
        node = max(self._made) + 1
        self._made[node] = folder
        self._nodes[node] = _Folder() if folder else _File()
        return node

    def _overwrite(self, node: int, content: bytes) -> None:
        self.truncate(node, 0)
        self.write(node, 0, content)

    def _do(self, op: Operation) -> None:
        self.journal.append(op)
        _step(self._nodes, op)

    def _replayed(self, position: int) -> dict[int, Node]:
        nodes: dict[int, Node] = {}
        for at, folder in self._made.items():
            base = self._base.get(at)
            if isinstance(base, _Folder):
                nodes[at] = _Folder(dict(base.synced), dict(base.synced))
            elif isinstance(base, _File):
                nodes[at] = _File(base.synced)
            else:
                nodes[at] = _Folder() if folder else _File()
        for op in self.journal[:position]:
            _step(nodes, op)
        return nodes

    def _write_out(self) -> None:
        """Make the live state in the real, empty folder `root`."""
        places: dict[int, Path] = {}
        waiting = [(ROOT, self.root)]
        while waiting:
            at, path = waiting.pop()
            node = self._nodes[at]
            if isinstance(node, _Folder):
                path.mkdir(exist_ok=True)
                waiting += [(child, path / name) for name, child in node.live.items()]
            elif at in places:
                path.hardlink_to(places[at])
            else:
                path.write_bytes(node.live())
                places[at] = path


def _step(nodes: dict[int, Node], op: Operation) -> None:
    node = nodes[op.folder if isinstance(op, Name) else op.node]
    if isinstance(node, _Folder):
        if isinstance(op, Name):
            node.pending.setdefault(op.name, [node.synced.get(op.name)]).append(op.node)
            if op.node is None:
                node.live.pop(op.name, None)
            else:
                node.live[op.name] = op.node
        else:
            node.synced, node.pending = dict(node.live), {}
    elif isinstance(op, Sync):
        node.synced, node.pending = node.live(), []
    else:
        assert not isinstance(op, Name)
        node.pending.append(op)


def _apply(content: bytearray, op: Write | Truncate) -> None:
    if isinstance(op, Truncate):
        content[op.size :] = bytes(max(op.size - len(content), 0))
    else:
        content.extend(bytes(max(op.offset - len(content), 0)))
        content[op.offset : op.offset + len(op.content)] = op.content


def _surviving_bytes(file: _File, harm: Harm, rng: random.Random) -> bytes:
    content = bytearray(file.synced)
    keeps = _keeping(harm, "bytes", rng)
    for op in file.pending:
        if isinstance(op, Truncate):
            if keeps():
                _apply(content, op)
            continue
        for start, end in _sectors(op.offset, op.offset + len(op.content), harm.sector):
            if keeps():
                _apply(content, Write(op.node, start, op.content[start - op.offset : end - op.offset]))
    if harm.style == "names" or (harm.style == "any" and rng.random() < 0.3):
        content.extend(bytes(max(len(file.live()) - len(content), 0)))  # the size is known, the bytes are not
    return bytes(content)


def _surviving_names(folder: _Folder, harm: Harm, rng: random.Random) -> dict[str, int]:
    names = dict(folder.synced)
    keeps = _keeping(harm, "names", rng)
    for name, states in folder.pending.items():
        kept = -1 if keeps() else 0
        node = rng.choice(states) if harm.style == "any" else states[kept]
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
    return names


def _keeping(harm: Harm, what: str, rng: random.Random) -> Callable[[], bool]:
    if harm.style == "any":
        share = rng.choice((0.1, 0.5, 0.9))
        return lambda: rng.random() < share
    return lambda: harm.style in ("everything", what)


def _sectors(start: int, end: int, sector: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min((start // sector + 1) * sector, end)
        yield start, stop
        start = stop
