"""What a changed file means for running nodes: who goes, who comes, who is built anew, what waits for a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from collectors.assembly import Name, connection_print, name_of
from infomae_stream.node_config import NodeConfig, NodeSettings

RESTART_KEYS: Final = ("state_dir", "truth_log_dir", "metrics")
SHARED_KEYS: Final = ("outbox", "uplink", "home_assistant")  # each node is built with them


@dataclass(frozen=True, slots=True)
class Changes:
    """config: the new one, with the old values of the keys in `need_restart`."""

    config: NodeConfig
    need_restart: list[str]
    removed: list[Name]
    added: list[NodeSettings]
    rebuilt: list[NodeSettings]
    reconnected: set[Name]  # of the rebuilt, those with a new connection


def compare(old: NodeConfig, new: NodeConfig, connections: Mapping[Name, str]) -> Changes:
    """connections: the connection_print of each node when it was built."""
    need_restart = [key for key in RESTART_KEYS if getattr(old, key) != getattr(new, key)]
    config = new.model_copy(update={key: getattr(old, key) for key in need_restart})
    before = {name_of(node): node for node in old.nodes}
    after = {name_of(node): node for node in config.nodes}
    reconnected = {
        name for name in before.keys() & after.keys() if connection_print(config, after[name]) != connections[name]
    }
    shared = any(getattr(old, key) != getattr(config, key) for key in SHARED_KEYS)
    rebuilt = [
        node
        for name, node in after.items()
        if name in before and (shared or name in reconnected or before[name] != node)
    ]
    return Changes(
        config,
        need_restart,
        removed=[name for name in before if name not in after],
        added=[node for name, node in after.items() if name not in before],
        rebuilt=rebuilt,
        reconnected=reconnected,
    )
