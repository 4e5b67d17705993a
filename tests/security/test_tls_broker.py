"""From `hub init` to data in the lake over TLS, against a real mosquitto; and who is turned away, and how it shows."""

from __future__ import annotations

import gc
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infomae_stream.errors import ConnectionFailed
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from storage.lake import Lake
from storage.verify import compare
from tests.brokers import end, free_port
from tests.faults.rows.certificates import ROW
from tests.recording_files import write_csv
from tests.security.sites import HAS_MOSQUITTO, TlsSite
from tests.waiting import PATIENCE_S, metrics_of, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed"),
    # paho leaves the socket of a failed handshake to the garbage collector, which closes it with a warning.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TlsSite]:
    made = TlsSite(tmp_path)
    yield made
    made.stop()
    gc.collect()  # no warning of these tests is left for others


def run(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "infomae_stream.cli", *arguments, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


def test_data_of_an_enrolled_node_reach_the_lake_over_tls(tmp_path: Path, site: TlsSite) -> None:
    """Every step by its command, as docs/security.md shows them; node and hub as processes."""
    home = tmp_path / "node"
    home.mkdir()
    write_csv(home / "watch.csv", list(range(0, 6000, 10)))
    node_port, hub_port = free_port(), free_port()
    config = home / "node.toml"
    config.write_text(
        f'truth_log_dir = "truth"\n[metrics]\ncollect_port = {node_port}\n[outbox]\ncommit_interval_s = 0.2\n'
        f'[mqtt]\nhost = "localhost"\nport = {site.port}\nca_file = "tls/ca.pem"\n'
        'cert_file = "tls/{node}.pem"\nkey_file = "tls/{node}.key"\n'
        '[[nodes]]\nsite = "s01"\nnode = "s01-watch"\n'
        'sources = [{ type = "replay", path = "watch.csv", speed = 8 }]\n'
    )
    run("node", "request", "--config", str(config))
    hub = str(site.site.folder)
    issued = run("hub", "enroll", "s01-watch", "--request", str(home / "tls" / "s01-watch.csr"), "--dir", hub)
    for name in ("s01-watch.pem", "ca.pem"):
        shutil.copy(Path(str(issued["folder"])) / name, home / "tls" / name)
    with (site.site.folder / "hub.toml").open("a") as f:
        f.write(f"[metrics]\ningest_port = {hub_port}\n[ingest]\ncommit_interval_s = 0.1\n")
    site.start()
    with ExitStack() as stack, (tmp_path / "node.log").open("wb") as node_log, (tmp_path / "hub.log").open("wb") as log:
        for command, err in (
            (["hub", "ingest", "--config", f"{hub}/hub.toml"], log),
            (["node", "collect", "--config", str(config)], node_log),
        ):
            process = subprocess.Popen([sys.executable, "-m", "infomae_stream.cli", *command], stderr=err)
            stack.callback(process.wait, PATIENCE_S)
            stack.callback(process.terminate)
        wait_until(lambda: "outbox_drained" in (tmp_path / "node.log").read_text(), what="everything acknowledged")
        for port, own in ((node_port, "s01-watch"), (hub_port, "hub")):
            for name in (own, "broker"):
                expiry = f'infomae_certificate_expiry_timestamp_seconds{{node="{name}"}}'
                wait_until(lambda port=port, expiry=expiry: expiry in metrics_of(port), what=f"{own} telling of {name}")
    found = compare(home / "truth", Lake(site.site.folder / "lake"))
    assert found.passed and found.accepted > 0, found


@pytest.mark.parametrize("seed", [1, 2])
def test_everybody_else_is_refused_and_counted(tmp_path: Path, seed: int) -> None:
    """The row of the fault matrix: expired, not valid yet, revoked, foreign, none; and a neighbour's topics."""
    result = ROW.trial(random.Random(seed), tmp_path)
    assert result.passed and result.accepted > 5, result


def connect(stack: ExitStack, settings: MqttSettings, client_id: str) -> MqttSession:
    session = MqttSession(settings, client_id)
    session.start()
    stack.callback(end, session)
    return session


def test_a_broker_of_another_authority_or_name_gets_nothing(tmp_path: Path, site: TlsSite) -> None:
    settings = site.enrol("n1")
    (tmp_path / "other").mkdir()
    impostor = TlsSite(tmp_path / "other").start()
    (tmp_path / "elsewhere").mkdir()
    elsewhere = TlsSite(tmp_path / "elsewhere", hosts=["hub.example"]).start()
    own_ca = {"port": elsewhere.port, "ca_file": str(elsewhere.site.tls / "ca.pem")}
    with ExitStack() as stack:
        stack.callback(impostor.stop)
        stack.callback(elsewhere.stop)
        for change, says in (({"port": impostor.port}, "not trusted"), (own_ca, "(?i)hostname|ip address mismatch")):
            session = connect(stack, settings.model_copy(update=change), "n1")
            with pytest.raises(ConnectionFailed, match=says):
                wait_until(lambda session=session: session.poll(0.5))
            assert set(session.broker.refusals) == {"broker_untrusted"} and not session.connected


def test_a_reload_shuts_new_connections_out_and_a_restart_ends_open_ones(site: TlsSite) -> None:
    settings = site.enrol("n1")
    other = site.enrol("n2")
    site.start()
    with ExitStack() as stack:
        open_one, neighbour = connect(stack, settings, "n1"), connect(stack, other, "n2")
        wait_until(lambda: open_one.connected and neighbour.connected, what="connections")
        site.revoke("n1")
        site.reload()

        def shut_out() -> bool:
            late = MqttSession(settings, "n1-late")
            late.start()
            try:
                wait_until(lambda: late.connected or late.broker.refusals, what="an answer")
                return not late.connected
            finally:
                end(late)

        wait_until(shut_out, what="the list in force")
        assert open_one.connected and open_one.reconnects == 0
        site.restart()
        wait_until(lambda: open_one.broker.refusals and neighbour.reconnects, what="the restart's effect")
        wait_until(lambda: neighbour.connected, what="the neighbour coming back")
        assert not open_one.connected and open_one.reconnects == 0 and not neighbour.broker.refusals["publish_denied"]
