"""SIGHUP for the detector: it is built anew from what the file says now; the last good configuration stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from infomae_stream.config import load_config
from infomae_stream.errors import InfomaeError
from infomae_stream.node_config import NodeConfig
from infomae_stream.telemetry import EventLog, Telemetry

USED_KEYS: Final = ("mqtt", "outbox", "detect", "nodes")
RESTART_KEYS: Final = ("state_dir", "metrics")
INSTALL_PATIENCE_S: Final = 30.0


class Loop(Protocol):
    def wait_for_install(self, timeout_s: float) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...


L = TypeVar("L", bound=Loop)


def reloaded(
    loop: L, settings: NodeConfig, path: Path, make: Callable[[NodeConfig], L], telemetry: Telemetry, log: EventLog
) -> tuple[L, NodeConfig]:
    """The loop and the settings to go on with: new ones, or those given when the file cannot be used.

    Detections are committed before, and the position with them, so that nothing is detected twice or left out. Raises
    what `make` raises when not even the old settings can be built again.
    """
    good = False
    try:
        found = load_config(path, NodeConfig)
        need_restart = [key for key in RESTART_KEYS if getattr(found, key) != getattr(settings, key)]
        new = found.model_copy(update={key: getattr(settings, key) for key in need_restart})
        if any(getattr(new, key) != getattr(settings, key) for key in USED_KEYS):
            loop.wait_for_install(INSTALL_PATIENCE_S)
            loop.commit()
            loop.close()
            try:
                loop = make(new)
            except InfomaeError:
                loop = make(settings)
                raise
        settings, good = new, not need_restart
        log.info("config_reloaded")
        if need_restart:
            log.warning("config_needs_restart", keys=need_restart, effect="their old values stay")
    except InfomaeError as e:
        log.error("config_rejected", reason=str(e), effect="the last good configuration stays")
    telemetry.gauge("infomae_config_last_reload_successful").set(good)
    return loop, settings
