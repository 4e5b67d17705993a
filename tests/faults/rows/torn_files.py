"""Row 12: files of the lake that are cut at any offset, emptied, or stray temporaries of a killed writer.

Readers leave a torn file out and say so; everything in the other files is read as it was. The index of identities does
without it too, so an ingest starts, and takes the lost records anew when they are sent again: then nothing is lost.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from infomae_stream.types import Chunk
from infomae_stream.wire import chunk_crc32
from storage import query
from storage.lake import Lake
from storage.segments import live_files
from storage.torn_files import torn_seen
from storage.verify import compare
from tests.faults.trial import Row, TrialResult
from tests.hub_records import START_NS, make_chunk, make_gap, same_chunk

BATCHES = 6
SITES = ("s01", "s02")


def fill(lake: Lake, rng: random.Random) -> list[Chunk]:
    """Several commits, so several segments; and gap records beside them."""
    chunks: list[Chunk] = []
    for batch in range(BATCHES):
        new = [
            make_chunk(batch * 10 + i, site=site, node=f"{site}-phone", n=rng.randint(1, 120))
            for site in SITES
            for i in range(rng.randint(2, 6))
        ]
        lake.commit_batch(new, [make_gap(1000 + batch)], (), START_NS)
        chunks += new
    return chunks


def write_truth(folder: Path, chunks: list[Chunk]) -> None:
    folder.mkdir()
    with (folder / "all.jsonl").open("w") as f:
        for chunk in chunks:
            stream = chunk.spec.id
            line = {"kind": "chunk", "site": stream.site, "node": stream.node, "stream": stream.stream}
            line |= {"epoch": chunk.epoch, "seq": chunk.seq, "start_ns": chunk.start_ns, "crc32": chunk_crc32(chunk)}
            f.write(json.dumps(line) + "\n")
        for batch in range(BATCHES):
            gap = make_gap(1000 + batch)
            line = {"kind": "gap", "site": "s01", "node": "s01-phone", "stream": "imu", "epoch": gap.epoch}
            f.write(json.dumps(line | {"seq": gap.seq, "start_ns": gap.start_ns, "crc32": 0}) + "\n")


def cut(rng: random.Random, file: Path) -> None:
    """At its very ends, or anywhere; emptied; or the rest filled with zeros, as a file system may after a power cut."""
    content = file.read_bytes()
    at = rng.choice([0, 1, 4, 11, len(content) // 2, len(content) - 8, len(content) - 1, rng.randrange(len(content))])
    file.write_bytes(content[:at] + (bytes(len(content) - at) if rng.random() < 0.3 and at < len(content) - 8 else b""))


def trial(rng: random.Random, folder: Path) -> TrialResult:
    lake = Lake(folder / "lake")
    chunks = fill(lake, rng)
    write_truth(folder / "truth", chunks)
    files = live_files(lake.table_path("chunks"), lake.version("chunks"))
    torn = rng.sample(files, rng.randint(1, len(files) - 1))
    gone = _of_files(lake, torn, chunks)
    seen = torn_seen()
    for file in torn:
        cut(rng, file)
    stray = files[0].with_name(f".{files[0].name}.0123456789abcdef.tmp")
    stray.write_bytes(rng.randbytes(rng.choice([0, 100])))

    failures = []
    left = query.read_chunks(Lake(folder / "lake"))
    want = sorted((c for c in chunks if id(c) not in gone), key=lambda c: (str(c.spec.id), c.start_ns))
    if len(left) != len(want) or not all(same_chunk(a, b) for a, b in zip(left, want, strict=False)):
        failures.append(f"{len(left)} chunks are read beside {len(torn)} torn files, not the {len(want)} of the others")
    if torn_seen() - seen != len(torn):
        failures.append(f"{torn_seen() - seen} torn files are counted, not {len(torn)}")
    # What a node that still has everything makes of it: all is sent again.
    again = Lake(folder / "lake").commit_batch(chunks, (), (), START_NS)
    if again.written != len(gone):
        failures.append(f"{again.written} records are taken anew, not the {len(gone)} of the torn files")
    found = compare(folder / "truth", Lake(folder / "lake"))
    return TrialResult(
        accepted=found.accepted,
        lost=found.lost,
        logical_duplicates=found.logical_duplicates,
        physical_duplicates=found.physical_duplicates,
        peak_disk_bytes=lake.size()[0],
        failures=tuple(failures),
    )


def _of_files(lake: Lake, files: list[Path], chunks: list[Chunk]) -> set[int]:
    """ids of those of `chunks` that lie in `files`, told by what a lake without the others would show."""
    from storage.segments import identity_ranges

    inside = {(key[:2], seq) for file in files for key, a, b in identity_ranges(file) for seq in range(a, b + 1)}
    return {id(c) for c in chunks if ((c.spec.id.site, c.spec.id.node), c.seq) in inside}


ROW = Row(12, "torn Parquet, stray temporary, empty file", trial, 0.6)
