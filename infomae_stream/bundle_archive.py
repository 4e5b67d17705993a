"""The bundle's container: an uncompressed zip in exactly one byte form.

Any zip tool opens it, but only what `pack` writes is read back: fixed header fields, flat names in a fixed order, no
compression, nothing before, between or after. So no byte of the file is free to change, and nothing can inflate.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from infomae_stream.errors import BundleError

MAX_MEMBERS: Final = 64
NAME: Final = re.compile(r"[a-z0-9_-][a-z0-9_.-]{0,99}")

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_VERSION_NEEDED: Final = 20
_DATE_1980: Final = 33
_LOCAL_FIXED: Final = (b"PK\x03\x04", _VERSION_NEEDED, 0, 0, 0, _DATE_1980)


@dataclass(frozen=True, slots=True)
class Member:
    """One named file; `crc32` as the archive states it, not checked here: the sha256 of the manifest comes first.

    content: a view of the archive's bytes when it was read, so that large weights are in memory once.
    """

    name: str
    content: bytes | memoryview
    crc32: int

    def check_crc32(self, where: str) -> None:
        """Raises BundleError(structure) when the stated checksum is not that of the content."""
        if zlib.crc32(self.content) != self.crc32:
            raise BundleError(f"checksum of {self.name} in the archive is wrong", reason="structure", where=where)


def pack(files: dict[str, bytes]) -> bytes:
    """The archive with `files` in the order given. Raises BundleError(path) for a name that is not flat."""
    members = [Member(name, content, zlib.crc32(content)) for name, content in files.items()]
    parts: list[bytes | memoryview] = []
    for member in members:
        _check_name(member.name, "bundle")
        parts += [_local_header(member), member.content]
    return b"".join(parts) + _directory(members)


def unpack(data: bytes, where: str) -> list[Member]:
    """The members, in order. Raises BundleError with reason truncated, path or structure."""
    members: list[Member] = []
    at = 0
    while data[at : at + 4] == b"PK\x03\x04":
        member, at = _read_member(data, at, where)
        if any(member.name == known.name for known in members):
            raise BundleError(f"{member.name} stands in it twice", reason="structure", where=where)
        members.append(member)
        if len(members) > MAX_MEMBERS:
            raise BundleError(f"more than {MAX_MEMBERS} members", reason="structure", where=where)
    directory = _directory(members)
    if data[at:] != directory:
        if directory.startswith(data[at:]):
            raise _truncated(where)
        raise BundleError("not an archive as bundles are written", reason="structure", where=where)
    return members


def _read_member(data: bytes, at: int, where: str) -> tuple[Member, int]:
    if at + _LOCAL.size > len(data):
        raise _truncated(where)
    *fixed, crc32, packed_size, size, name_length, extra_length = _LOCAL.unpack_from(data, at)
    if tuple(fixed) != _LOCAL_FIXED or packed_size != size or extra_length:
        raise BundleError(
            "a member's header is not plain (compressed, encrypted, streamed or with extra fields)",
            reason="structure",
            where=where,
        )
    start = at + _LOCAL.size + name_length
    if start + size > len(data):
        raise _truncated(where)
    name = data[at + _LOCAL.size : start].decode("ascii", errors="replace")
    _check_name(name, where)
    return Member(name, memoryview(data)[start : start + size], crc32), start + size


def _check_name(name: str, where: str) -> None:
    if not NAME.fullmatch(name):
        raise BundleError(f"member name {name[:120]!r} is not a flat name", reason="path", where=where)


def _truncated(where: str) -> BundleError:
    return BundleError("the file ends too early", reason="truncated", where=where, fix="fetch it again")


def _local_header(member: Member) -> bytes:
    name = member.name.encode("ascii")
    size = len(member.content)
    return _LOCAL.pack(*_LOCAL_FIXED, member.crc32, size, size, len(name), 0) + name


def _directory(members: list[Member]) -> bytes:
    """Central directory and end record: a function of the members alone."""
    parts: list[bytes] = []
    offset = 0
    for member in members:
        name = member.name.encode("ascii")
        size = len(member.content)
        head = (b"PK\x01\x02", _VERSION_NEEDED, _VERSION_NEEDED, 0, 0, 0, _DATE_1980)
        parts.append(_CENTRAL.pack(*head, member.crc32, size, size, len(name), 0, 0, 0, 0, 0, offset) + name)
        offset += _LOCAL.size + len(name) + size
    directory = b"".join(parts)
    count = len(members)
    return directory + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), offset, 0)
