"""The peers of benchmarks/ingest.py. They store what arrives, unread: no check, no decoding, no commit, no ack.

`ingest_peers.py paho|pathway PORT FOLDER`, until killed.

pathway: its MQTT source (raw, QoS 1, a commit a second), `pw.io.subscribe`, rows into Parquet by pyarrow at each
commit: it has no sink for Parquet, and its Delta Lake sink wants a licence key. One worker thread. paho: the client
library's own loop on a thread, rows into Parquet by pyarrow once a second.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

FILTER = "infomae/v1/+/+/+/chunk"
KEEP_CACHED = "PEERS_KEEP_CACHED" in os.environ  # as a program without fsync does


def store_plainly(rows: pa.Table, path: Path) -> None:
    """The cheapest way known to us.

    Compression, dictionaries and statistics would only cost the peers time; and what stays in the page cache costs them
    some 30 us a chunk where the machine is virtual and every page of the cache is new memory.
    """
    import pyarrow.parquet as pq

    pq.write_table(rows, path, compression="none", use_dictionary=False, write_statistics=False)
    if KEEP_CACHED:
        return
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # only what is clean can be dropped
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def run_pathway(port: int, folder: Path) -> None:
    import pathway as pw
    import pyarrow as pa

    logging.disable(logging.INFO)  # it would log each PUBACK
    rows: list[bytes] = []
    written = 0

    def take(key: pw.Pointer, row: dict[str, bytes], time: int, is_addition: bool) -> None:
        rows.append(row["data"])

    def store(time: int) -> None:
        nonlocal written
        for first in range(0, len(rows), 2000):
            path = folder / f"part-{written}.parquet"
            store_plainly(pa.table({"data": rows[first : first + 2000]}), path)
            written += 1
        rows.clear()

    uri = f"mqtt://127.0.0.1:{port}/?client_id=pathway&max_incoming_packet_size_bytes=10000000&max_outgoing_packet_size_bytes=10000000"
    table = pw.io.mqtt.read(uri, FILTER, qos=1, format="raw", autocommit_duration_ms=1000, max_backlog_size=4000)
    pw.io.subscribe(table, on_change=take, on_time_end=store)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


def run_paho(port: int, folder: Path) -> None:
    import paho.mqtt.client as mqtt
    import pyarrow as pa
    from paho.mqtt.enums import CallbackAPIVersion

    arrived: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="paho")
    client.on_message = lambda _c, _u, message: arrived.put(message)
    client.on_connect = lambda c, *_: c.subscribe(FILTER, 1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    written = 0
    while True:
        rows, until = [], time.monotonic() + 1.0
        while time.monotonic() < until and len(rows) < 2000:
            try:
                rows.append(arrived.get(timeout=max(0.001, until - time.monotonic())))
            except queue.Empty:
                break
        if rows:
            columns = {"topic": [m.topic for m in rows], "data": [m.payload for m in rows]}
            path = folder / f"part-{written}.parquet"
            store_plainly(pa.table(columns), path)
            written += 1


if __name__ == "__main__":
    {"paho": run_paho, "pathway": run_pathway}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
