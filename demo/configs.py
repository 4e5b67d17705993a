"""Writes the deployment's files: what an operator would write by hand, with a word on each setting that matters."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.people import (
    DEVICES,
    LEARN,
    PHONE,
    UNSEEN,
    VALIDATE,
    WATCH,
    WRONG_CLOCK_MS,
    Person,
    Play,
    Schedule,
    has_wrong_clock,
    node_name,
    play_of,
)
from demo.recordings import CLASSES, Recording, file_of, read_recordings

NODE_FILES: Final = {PHONE: "phones", WATCH: "watches"}
NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True)
class Ports:
    """Every port of the demonstration, all on loopback."""

    mqtt: int
    phones_collect: int
    phones_detect: int
    watches_collect: int
    watches_detect: int
    ingest: int
    align: int
    maintain: int
    bundles: int

    def metrics(self) -> dict[str, int]:
        """Process name -> port that serves its /metrics."""
        names = ("phones_collect", "phones_detect", "watches_collect", "watches_detect", "ingest", "align", "maintain")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Device:
    """One node of the demonstration, with what it plays and its recordings' own labels."""

    person: Person
    device: str
    play: Play
    recordings: tuple[Recording, ...]

    @property
    def node(self) -> str:
        return node_name(self.person, self.device)


def devices_of(schedule: Schedule) -> list[Device]:
    """Every node of the schedule; reads the labels of the shipped recordings."""
    found = []
    for device in DEVICES:
        for person in schedule.cast:
            all_recordings = {r.name: r for r in read_recordings(file_of(person.name, device))}
            play = play_of(person, device, list(all_recordings), schedule)
            found.append(Device(person, device, play, tuple(all_recordings[name] for name in play.recordings)))
    return found


def write_all(out: Path, ports: Ports, schedule: Schedule, devices: Iterable[Device]) -> None:
    """Write every file of the deployment below `out`, which exists."""
    devices = list(devices)
    for device, name in NODE_FILES.items():
        mine = [d for d in devices if d.device == device]
        (out / f"{name}.toml").write_text(node_file(name, mine, ports), encoding="utf-8")
    (out / "hub.toml").write_text(hub_file(schedule, ports), encoding="utf-8")
    (out / "mosquitto.conf").write_text(mosquitto_file(ports.mqtt), encoding="utf-8")
    (out / "labels").mkdir(exist_ok=True)
    write_labels(out / "labels" / "train.csv", [d for d in devices if _learns_labels(d)])
    write_labels(out / "labels" / "evaluate.csv", [d for d in devices if not _learns_labels(d)])


def _learns_labels(device: Device) -> bool:
    return device.person.group == LEARN and device.device == PHONE


def node_file(name: str, devices: Iterable[Device], ports: Ports) -> str:
    collect, detect = getattr(ports, f"{name}_collect"), getattr(ports, f"{name}_detect")
    head = f"""\
# The {name}: one collecting and one detecting process that host {name} of several people.
#   infomae-stream node run --config {name}.toml
# Relative paths are seen from this file's folder.

state_dir = "state/{name}"     # outboxes (one SQLite file a node) and the installed bundle
truth_log_dir = "truth"        # every record that was accepted is noted here, so that an audit can compare the lake

[mqtt]
host = "127.0.0.1"
port = {ports.mqtt}

[metrics]
collect_port = {collect}
detect_port = {detect}

[outbox]
commit_interval_s = 1.0        # what a power cut may cost at most
keep_s = 60.0                  # acknowledged records stay this long for the detector

[detect]
trusted_keys = ["keys/release.pub"]   # a bundle that another key signed is refused

[detect.events]
min_windows = 2                # one window alone is no event
idle_s = 3.0                   # a recording's last activity is told this long after its end
"""
    return head + "".join(_node_table(device) for device in devices)


def _node_table(device: Device) -> str:
    p, play = device.person, device.play
    recorder = json.dumps(str(file_of(p.name, device.device)))
    lines = ["", "[[nodes]]", f'site = "{p.name}"', f'node = "{device.node}"', "[nodes.clock]", 'source = "declared"']
    if has_wrong_clock(p, device.device):
        lines += [
            "# Wrong on purpose: this watch runs ahead, and its time source knows that it follows no reference.",
            'declared_source = "unsynchronised"',
            f"offset_ms = {WRONG_CLOCK_MS}",
            "uncertainty_ms = 500.0",
            "synchronised = false",
        ]
    else:
        lines += ['declared_source = "recording"', "uncertainty_ms = 5.0", "synchronised = true"]
    lines += ["[[nodes.sources]]", 'type = "replay"', f"path = {recorder}"]
    lines += [f"recordings = {json.dumps(list(play.recordings))}", f"speed = {play.speed}"]
    if play.prompt < len(play.recordings):
        lines += [f"prompt_recordings = {play.prompt}", f"pause_s = {play.pause_s}      # before each later recording"]
    if play.start_after_s:
        lines += [f"start_after_s = {play.start_after_s}"]
    return "\n".join(lines) + "\n"


def hub_file(schedule: Schedule, ports: Ports) -> str:
    def names(group: str) -> str:
        return json.dumps([p.name for p in schedule.cast if p.group == group])

    return f"""\
# The hub: ingest into the lake, matcher, aligner, bundle server.
#   infomae-stream hub run --config hub.toml
# Relative paths are seen from this file's folder.

[mqtt]
host = "127.0.0.1"
port = {ports.mqtt}

[metrics]
ingest_port = {ports.ingest}
align_port = {ports.align}
maintain_port = {ports.maintain}

[lake]
path = "lake"

[ingest]
commit_interval_s = 1.0

[maintenance]
interval_s = 15.0                    # the lake's many small files become few

[matcher]                            # which windows make a pair
modalities = ["phone_imu", "watch_imu"]
window_s = 2.0
hop_s = 0.5
min_coverage = 0.95
max_clock_uncertainty_s = 0.05
max_clock_offset_s = 0.05

[align]
work_dir = "aligner"
seed = 0
classes = {json.dumps(list(CLASSES))}
validation_sites = {names(VALIDATE)}   # gates read these people; training never sees them
test_sites = {names(UNSEEN)}   # reported only

[align.trigger]                      # when to align
min_pairs = {schedule.min_pairs}
min_new_pairs = {schedule.min_new_pairs}
settle_s = {schedule.settle_s}
{schedule.train}
[gates]
min_gain_over_unaligned = {schedule.min_gain_over_unaligned}     # macro-F1 on the validation people
min_gain_over_serving = {schedule.min_gain_over_serving}       # a later model that gains less is not worth a rollout

[release]
signing_key = "keys/release.pem"
port = {ports.bundles}
"""


def mosquitto_file(port: int) -> str:
    return f"""\
# Nothing is kept on disk: a node sends again what the hub has not acknowledged.
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_packet_size 4200000
max_inflight_messages 200
max_queued_messages 20000
log_dest stderr
log_type error
log_type warning
"""


def write_labels(path: Path, devices: Iterable[Device]) -> None:
    """The recordings' own label column as intervals; a clock that is wrong is wrong here too, as in its data."""
    with path.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f, lineterminator="\n")
        rows.writerow(["site", "node", "start_ns", "end_ns", "label"])
        for device in devices:
            shift_ns = clock_shift_ns(device)
            for interval in sorted((i for r in device.recordings for i in r.intervals), key=lambda i: i.start_ns):
                row = (interval.start_ns + shift_ns, interval.end_ns + shift_ns, interval.label)
                rows.writerow([device.person.name, device.node, *row])


def clock_shift_ns(device: Device) -> int:
    """How far the times in this node's data lie ahead of the recording's."""
    return round(WRONG_CLOCK_MS * NS_PER_MS) if has_wrong_clock(device.person, device.device) else 0
