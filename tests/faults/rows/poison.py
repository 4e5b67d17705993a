"""Row 11: corrupt, truncated, oversized messages and bombs among good records, into a real ingest.

Every bad message is one dead letter counted, none is in the lake, every good record is stored and acknowledged, the
process lives on, and its memory stays within bounds that do not grow with the bombs.
"""

from __future__ import annotations

import random
import re
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.wire import MAX_MESSAGE_BYTES
from storage.lake import Lake
from storage.verify import compare
from tests.brokers import HAS_MOSQUITTO, Broker, wait_until
from tests.faults.hub_process import IngestProcess, Sender
from tests.faults.trial import Row, TrialResult
from tests.fuzz.mutations import cbor_bombs, json_bombs
from tests.fuzz.targets import TARGETS
from tests.hub_records import make_chunk
from tests.waiting import PATIENCE_S

SITE, NODE = "s01", "s01-phone"
MESSAGES = 60
MEMORY_BYTES = 250_000_000  # above what ingest had before: 60 bombs of 4 MiB at once would be more
# Which judge decides on a topic's messages; two targets share the chunk's.
TOPICS = {
    "chunk": stream_topic(SITE, NODE, "imu", "chunk"),
    "gap": stream_topic(SITE, NODE, "imu", "gap"),
    "detection": node_topic(SITE, NODE, "detections"),
}


def poison(rng: random.Random) -> tuple[str, bytes]:
    """(topic, payload) of a message that has to be refused."""
    name = rng.choice(sorted(TOPICS))
    target = next(t for t in TARGETS if t.name == name)
    topic = TOPICS[target.name]
    kind = rng.random()
    if kind < 0.05:
        return topic, rng.randbytes(16) + bytes(MAX_MESSAGE_BYTES + rng.randrange(10_000))
    if kind < 0.15:
        payload = json_bombs(rng) if target.name == "detection" else cbor_bombs(rng)
        return topic, payload[:MAX_MESSAGE_BYTES]
    while True:
        payload = rng.choice(target.breakers)(rng, target.valid(rng))
        if target.judge(payload) is None and len(payload) < 100_000:
            return topic, payload


def dead_letters(ingest: IngestProcess) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{ingest.metrics_port}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return round(sum(float(n) for n in re.findall(r"^infomae_dead_letters_total\{.*\} (\S+)$", text, flags=re.M)))


def peak_bytes(ingest: IngestProcess) -> int:
    assert ingest.process is not None
    status = Path(f"/proc/{ingest.process.pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def trial(rng: random.Random, folder: Path) -> TrialResult:
    failures = []
    with ExitStack() as stack:
        broker = Broker("mosquitto", folder).start()
        stack.callback(broker.stop)
        ingest = IngestProcess(folder, broker.port)
        ingest.start()
        stack.callback(lambda: ingest.process and ingest.process.poll() is None and ingest.kill())
        good = Sender(folder / "truth", broker.port, SITE, NODE)
        stack.callback(good.close)
        evil = MqttSession(MqttSettings(port=broker.port), "evil")
        evil.start()
        stack.callback(evil.close)
        seq = 1
        good.accept(make_chunk(seq, site=SITE, node=NODE, epoch="good"))
        wait_until(lambda: good.step() == 0, 60, "the first acknowledgement")
        before = peak_bytes(ingest)
        for _ in range(MESSAGES):
            topic, payload = poison(rng)
            wait_until(lambda topic=topic, payload=payload: evil.publish(topic, payload), 60, "room")  # type: ignore[misc]
            if rng.random() < 0.5:
                seq += 1
                good.accept(make_chunk(seq, site=SITE, node=NODE, epoch="good"))
            good.step()
        wait_until(lambda: good.step() == 0 and evil.inflight_bytes == 0, 60, "everything acknowledged")
        wait_until(lambda: dead_letters(ingest) >= MESSAGES, 60, "all dead letters")
        if dead_letters(ingest) != MESSAGES:
            failures.append(f"{dead_letters(ingest)} dead letters for {MESSAGES} bad messages")
        peak = peak_bytes(ingest)
        if peak - before > MEMORY_BYTES:
            failures.append(f"memory grew by {peak - before} bytes")
        if good.refused:
            failures += [f"refused: {r}" for r in good.refused if r[0] <= seq and r[2] == "conflict"]
        if ingest.stop() != 0:
            failures.append("ingest did not end as it should")
    found = compare(folder / "truth", Lake(ingest.lake_path))
    if found.unexpected:
        failures.append(f"{found.unexpected} bad records in the lake: {found.examples}")
    return TrialResult(
        accepted=found.accepted,
        lost=found.lost,
        logical_duplicates=found.logical_duplicates,
        physical_duplicates=found.physical_duplicates,
        peak_memory_bytes=peak,
        failures=tuple(failures),
    )


ROW = Row(
    11,
    "corrupt, truncated, oversized messages, bombs",
    trial,
    5.0,
    lambda: "" if HAS_MOSQUITTO else "mosquitto is not installed",
)
