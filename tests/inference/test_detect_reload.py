"""`node detect` as a process: it says when it has no bundle, and takes a changed file over without an end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infomae_stream.clock import SystemClock
from infomae_stream.outbox import Outbox
from infomae_stream.signing_keys import save_keys
from tests.collect_node import NodeProcess
from tests.tiny_bundle import PRIVATE_KEY, TinyBundle
from tests.waiting import wait_until


def write(node: NodeProcess, keys: list[str], extra: str = "") -> None:
    node.config.write_text(
        f"[metrics]\ncollect_port = 0\ndetect_port = {node.metrics_port}\n[detect]\ntrusted_keys = {json.dumps(keys)}\n"
        f'{extra}[[nodes]]\nsite = "s01"\nnode = "n1"\nsources = [{{ type = "synthetic" }}]\n',
        encoding="utf-8",
    )


@pytest.mark.slow
def test_a_reload_brings_a_key_and_a_lost_bundle_is_told(tmp_path: Path) -> None:
    info = TinyBundle(version=1).write(tmp_path / "1.zip")
    save_keys(tmp_path, PRIVATE_KEY)  # release.pub among them
    node = NodeProcess(tmp_path, "detect")
    write(node, [])
    node.start()
    try:
        node.wait_for("detect_started")
        assert "none serves" in node.wait_for("bundle_lost")["reason"]
        node.wait_for_metric("infomae_bundle_healthy", 0)
        outbox = Outbox.open(
            tmp_path / "state" / "s01" / "n1" / "outbox.sqlite", SystemClock(), max_bytes=10**8, reserve_bytes=0
        )
        desired = {"v": 1, "version": info.version, "sha256": info.sha256, "url": info.path.as_uri()}
        outbox.set_state("bundle_desired", json.dumps(desired).encode())
        outbox.close()
        wait_until(lambda: (node.metric("infomae_bundle_rollbacks_total") or 0) >= 1, what="a refusal without the key")

        write(node, ["no-such.pub"])
        node.hang_up()
        assert "no-such.pub" in node.wait_for("config_rejected")["reason"]
        node.wait_for_metric("infomae_config_last_reload_successful", 0)

        write(node, ["release.pub"])
        node.hang_up()
        node.wait_for("config_reloaded")
        node.wait_for_metric("infomae_config_last_reload_successful", 1)
        node.wait_for("bundle_serves", version=1)
        node.wait_for_metric("infomae_bundle_healthy", 1)

        (installed,) = (tmp_path / "state" / "bundles").glob("*.zip")
        kept = installed.read_bytes()
        installed.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert "has changed on the disk" in node.wait_for("bundle_lost", 2)["reason"]
        node.wait_for_metric("infomae_bundle_healthy", 0)
        installed.write_bytes(kept)
        node.wait_for("bundle_back")
    finally:
        code = node.stop()
    assert code == 0
