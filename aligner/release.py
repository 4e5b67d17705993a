"""From a candidate that passed every gate to a signed bundle that all nodes are told to run.

A release goes to every node at once: there is no canary fraction here, and a node that refuses or reverts a bundle says
so in bundle/observed. Going back means releasing older weights under a new version.

On disk, in work_dir/bundles: bundle-<version>.zip and current.json, which names the one that serves. The bundle is
written first and the pointer replaced after it: whoever is killed in between leaves the old pointer and a file that
nobody is sent to, and its version number is not used again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aligner.run_files import CANDIDATE, GOLDEN, HEAD
from infomae_stream import __version__
from infomae_stream.bundle import write_bundle, write_durably
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import TrainingError, WireError
from infomae_stream.topics import ROOT, node_topic, parse_topic
from infomae_stream.wire import VERSION, load_json

POINTER: Final = "current.json"
DAY_NS: Final = 86_400 * NS_PER_S
SUBSCRIPTIONS: Final = ((f"{ROOT}/+/+/birth", 1), (f"{ROOT}/+/+/bundle/observed", 1))
STATES: Final = ("serving", "refused", "none")
_NAME: Final = re.compile(r"bundle-(\d{6,})\.zip")


@dataclass(frozen=True)
class Released:
    """The bundle that nodes are told to run: its version, the hash of its file, the file's name, the run it is of."""

    version: int
    sha256: str
    file: str
    run: int


class Releases:
    """The folder of bundles. One process writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def current(self) -> Released | None:
        """What serves; None before the first release. Raises TrainingError when the pointer cannot be read."""
        path = self.folder / POINTER
        try:
            return Released(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as e:
            raise TrainingError(f"cannot read which bundle serves: {e}", where=str(path), fix="restore it") from e

    def next_version(self) -> int:
        """One more than any version that was ever given out, served or not."""
        current = self.current()
        taken = [int(m[1]) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name))]
        return max([0, *taken, current.version if current else 0]) + 1

    def release(self, run_folder: Path, key: Ed25519PrivateKey, now_ns: int, expires_days: int) -> Released:
        """Sign the candidate in `run_folder` and make it current; both survive a power cut when this returns.

        Raises TrainingError when a gate did not pass or a file is not the one that was judged, BundleError when a node
        would refuse the result.
        """
        candidate = read_candidate(run_folder)
        failed = [v["gate"] for v in candidate["verdicts"] if not v["passed"]]
        if failed or not candidate["verdicts"]:
            raise TrainingError(f"gates not passed: {', '.join(failed) or 'none asked'}", where=str(run_folder))
        files = _judged_files(run_folder, candidate)
        version = self.next_version()
        name = f"bundle-{version:06d}.zip"
        info = write_bundle(
            self.folder / name, manifest_of(candidate, version, now_ns, now_ns + expires_days * DAY_NS), files, key
        )
        released = Released(version, info.sha256, name, int(candidate["run"]))
        write_durably(self.folder / POINTER, json.dumps(asdict(released)).encode())
        return released


def read_candidate(run_folder: Path) -> dict[str, Any]:
    """What the training process wrote last. Raises TrainingError when there is none: the run did not end."""
    path = run_folder / CANDIDATE
    try:
        candidate: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise TrainingError(f"the run has no result: {e}", where=str(path)) from e
    return candidate


def manifest_of(candidate: Mapping[str, Any], version: int, created_ns: int, expires_ns: int) -> dict[str, Any]:
    """The manifest but for format and files; its lineage names the exact table versions that were learned from."""
    snapshot = candidate["snapshot"]
    return {
        "version": version,
        "created_ns": created_ns,
        "expires_ns": expires_ns,
        "classes": candidate["classes"],
        "thresholds": {},
        "modalities": candidate["modalities"],
        "subsets": candidate["validation"].get("subsets", []),
        "lineage": {
            "tables": snapshot["tables"],
            "train_sites": snapshot["train_sites"],
            "validation_sites": snapshot["validation_sites"],
            "test_sites": snapshot["test_sites"],
            "seed": snapshot["seed"],
            "train": snapshot["train"],
            "snapshot_code_version": snapshot["code_version"],
            "code_version": __version__,
            "run": candidate["run"],
            "stage_1": candidate["stage_1"],
        },
        "gates": {v["gate"]: {name: v[name] for name in v if name != "gate"} for v in candidate["verdicts"]},
    }


def _judged_files(run_folder: Path, candidate: Mapping[str, Any]) -> dict[str, bytes]:
    """Graphs and golden vectors, each with the hash that it had when the gates looked."""
    contracts = candidate["modalities"].values()
    names = [m[key] for m in contracts for key in ("encoder", "encoder_int8") if m.get(key)] + [HEAD, GOLDEN]
    files = {}
    for name in names:
        try:
            files[name] = (run_folder / name).read_bytes()
        except OSError as e:
            raise TrainingError(
                f"a file of the candidate is missing: {e.strerror}", where=str(run_folder / name)
            ) from e
        if hashlib.sha256(files[name]).hexdigest() != candidate["files"].get(name):
            raise TrainingError("not the file that the gates judged", where=str(run_folder / name))
    return files


class Rollout:
    """Which nodes there are, what each was told, and what each says it runs. Pure: messages in, messages out."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[str, str], dict[str, Any]] = {}
        self._told: dict[tuple[str, str], bytes] = {}

    def take(self, topic: str, payload: bytes) -> tuple[str, str] | None:
        """Take in a birth or a bundle/observed; return the node when what it runs has changed.

        Raises WireError for a message that is neither.
        """
        parsed = parse_topic(topic)
        node = (parsed.site, parsed.node)
        if parsed.leaf == "birth":
            if payload:  # an empty retained message clears a topic
                load_json(payload)
                self.nodes.setdefault(node, {})
                self._told.pop(node, None)  # a node that was born again is told again, should the broker have forgotten
            return None
        if parsed.leaf != "bundle/observed":
            raise WireError(f"not expected here: {topic[:80]!r}", reason="topic")
        if not payload:
            return None
        observed = _observed(load_json(payload))
        changed = self.nodes.get(node) != observed
        self.nodes[node] = observed
        return node if changed else None

    def to_tell(self, released: Released | None, base_url: str) -> list[tuple[str, bytes]]:
        """(topic, payload) for every node that was not told of this release yet; `told` must confirm each."""
        if released is None:
            return []
        payload = json.dumps(
            {
                "v": VERSION,
                "version": released.version,
                "sha256": released.sha256,
                "url": f"{base_url.rstrip('/')}/{released.file}",
            }
        ).encode()
        return [
            (node_topic(*node, "bundle/desired"), payload)
            for node in sorted(self.nodes)
            if self._told.get(node) != payload
        ]

    def told(self, topic: str, payload: bytes) -> None:
        parsed = parse_topic(topic)
        self._told[parsed.site, parsed.node] = payload


def _observed(message: Mapping[str, Any]) -> dict[str, Any]:
    try:
        state = str(message["state"])
        if state not in STATES:
            raise ValueError(f"state {state[:20]!r}")
        return {
            "version": int(message["version"]),
            "sha256": str(message["sha256"])[:64],
            "state": state,
            "reason": str(message.get("reason", ""))[:200],
            "verified": bool(message.get("verified", False)),
        }
    except (KeyError, TypeError, ValueError) as e:
        raise WireError(f"bundle/observed does not follow the schema: {e!r}", reason="schema") from e
