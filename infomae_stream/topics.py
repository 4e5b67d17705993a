"""The tree of MQTT topics: `infomae/v1/{site}/{node}/...` (the list stands in docs/wire.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from infomae_stream.errors import DataError, WireError
from infomae_stream.types import check_id

ROOT: Final = "infomae/v1"
STREAM_LEAVES: Final = ("chunk", "gap")
NODE_LEAVES: Final = ("status", "birth", "ack", "detections", "bundle/desired", "bundle/observed")


def node_topic(site: str, node: str, leaf: str) -> str:
    """`leaf` is one of NODE_LEAVES."""
    if leaf not in NODE_LEAVES:
        raise ValueError(f"unknown topic leaf {leaf!r}")
    return f"{ROOT}/{site}/{node}/{leaf}"


def stream_topic(site: str, node: str, stream: str, leaf: str) -> str:
    """`leaf` is one of STREAM_LEAVES."""
    if leaf not in STREAM_LEAVES:
        raise ValueError(f"unknown topic leaf {leaf!r}")
    return f"{ROOT}/{site}/{node}/{stream}/{leaf}"


@dataclass(frozen=True, slots=True)
class ParsedTopic:
    site: str
    node: str
    leaf: str
    stream: str = ""


def parse_topic(topic: str) -> ParsedTopic:
    """Take a topic apart. Raises WireError(reason="topic") when it is not one of ours."""
    if len(topic) > 256 or not topic.startswith(f"{ROOT}/"):
        raise WireError(f"topic {topic[:80]!r} is not below {ROOT}/", reason="topic")
    parts = topic[len(ROOT) + 1 :].split("/")
    try:
        site, node = check_id(parts[0], "site"), check_id(parts[1], "node")
        leaf = "/".join(parts[2:])
        if leaf in NODE_LEAVES:
            return ParsedTopic(site, node, leaf)
        if len(parts) == 4 and parts[3] in STREAM_LEAVES:
            return ParsedTopic(site, node, parts[3], check_id(parts[2], "stream"))
    except (IndexError, DataError) as e:
        raise WireError(f"topic {topic[:80]!r} cannot be read: {e}", reason="topic") from e
    raise WireError(f"topic {topic[:80]!r} has an unknown leaf", reason="topic")
