"""The systemd unit of a node, and what it needs beside it, made for one configuration.

Everything that a node does not need is shut: the list is that of systemd.exec(5). What a sensor needs is opened for
that sensor only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.supervisor import BAD_CONFIG_EXIT, STOP_TIMEOUT_S

NAME: Final = "infomae-node"
STATE_DIR: Final = Path("/var/lib") / NAME
BACKOFF_SYSTEMD: Final = 254  # from this version on restarts may come ever more seldom
WATCHDOG_S: Final = 180
# What opens a device to the service: group, and the device that it may use.
DEVICES: Final = {"alsa": ("audio", "char-alsa rw"), "i2c": ("i2c", "char-i2c rw"), "iio": ("iio", "char-iio rw")}

_HEAD: Final = """\
[Unit]
Description=infomae-stream node: collect and detect
Documentation=man:systemd.exec(5)
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target chronyd.service gpsd.service sound.target
# It is started again for ever: nobody comes by to do it.
StartLimitIntervalSec=0

[Service]
# `node run` starts and watches `node collect` and `node detect`; each is started again alone when it ends. The
# collecting child tells systemd that it is ready, and pets the watchdog while samples move: hence NotifyAccess=all.
Type=notify
NotifyAccess=all
WatchdogSec={watchdog_s}
TimeoutStartSec=120
ExecStart={program} node run --config {config}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
{backoff}
# A bad configuration does not mend by itself.
RestartPreventExitStatus={bad_config}
KillMode=mixed
TimeoutStopSec={stop_s}

DynamicUser=yes
StateDirectory={name}
StateDirectoryMode=0700
UMask=0077
{environment}MemoryMax=400M
OOMPolicy=continue
"""
_HARDENED: Final = """
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectProc=invisible
# /proc/cpuinfo stays readable: ONNX Runtime picks its kernels by it on Arm.
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
# Reading how well the clock is kept is the same call as setting it, which no capability allows here. ProtectClock=yes
# would refuse both, and a node that cannot read it makes no pairs.
SystemCallFilter=adjtimex clock_adjtime clock_adjtime64
SystemCallErrorNumber=EPERM
"""
_SHUT: Final = """\
ProtectKernelTunables=yes
PrivateUsers=yes
PrivateDevices=yes
DevicePolicy=closed
"""
_INSTALL: Final = """
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class ServicePaths:
    """Where things are on the machine that is to run the service, whatever folder stands for its root now."""

    program: Path
    config: Path


def unit_text(config: NodeConfig, paths: ServicePaths, systemd_version: int = 0) -> str:
    """The unit for `config`; systemd_version: of the machine that runs it, 0 when it is not known."""
    backoff = ["RestartSec=5"]
    if systemd_version >= BACKOFF_SYSTEMD:
        backoff += ["RestartSteps=8", "RestartMaxDelaySec=300"]
    head = _HEAD.format(
        program=paths.program,
        config=paths.config,
        name=NAME,
        watchdog_s=WATCHDOG_S,
        backoff="\n".join(backoff),
        bad_config=BAD_CONFIG_EXIT,
        stop_s=round(STOP_TIMEOUT_S + 10),
        environment="".join(line + "\n" for line in _environment(config)),
    )
    at_home = any(p.is_relative_to("/home") or p.is_relative_to("/root") for p in (paths.program, paths.config))
    hardened = _HARDENED.format(protect_home="read-only" if at_home else "yes")
    return head + hardened + _devices(needed(config)) + _INSTALL


def needed(config: NodeConfig) -> list[str]:
    """The sorts of sources in `config` that need a device."""
    return sorted({str(raw.get("type")) for node in config.nodes for raw in node.sources} & set(DEVICES))


def groups(config: NodeConfig) -> list[str]:
    return sorted({DEVICES[kind][0] for kind in needed(config)})


def sysusers_text(names: Sequence[str]) -> str:
    """sysusers.d(5): the groups that devices belong to; those that exist stay as they are."""
    return "# Groups of sensors, for infomae-node.service.\n" + "".join(f"g {name} -\n" for name in names)


def udev_text() -> str:
    """IIO devices belong to the group iio, the files by which they are switched on as well."""
    change = "chgrp -R iio /sys%p /dev/%k; chmod -R g+rwX /sys%p /dev/%k"
    return f'SUBSYSTEM=="iio", KERNEL=="iio:device*", ACTION=="add", RUN+="/bin/sh -c \'{change}\'"\n'


def secrets(config: NodeConfig) -> dict[str, Path]:
    """Files that only root may read, by the name under which systemd hands each to the service."""
    found = {}
    if config.mqtt.password_file:
        found["mqtt_password"] = config.path(config.mqtt.password_file)
    for node in config.nodes:
        key_file = config.mqtt.for_node(node.node).key_file
        if key_file:
            found[_key_name(config, node)] = config.path(key_file)
    return found


def _environment(config: NodeConfig) -> list[str]:
    """Secrets as credentials, and what has to be said differently because of it: the file stays as it is."""
    lines = [f"LoadCredential={name}:{path}" for name, path in secrets(config).items()]
    if config.mqtt.key_file:
        name = "{node}.key" if "{node}" in config.mqtt.key_file else _key_name(config, config.nodes[0])
        lines.append(f"Environment=INFOMAE__MQTT__KEY_FILE=%d/{name}")
    if config.mqtt.password_file:
        lines.append("Environment=INFOMAE__MQTT__PASSWORD_FILE=%d/mqtt_password")
    if config.path(config.state_dir) != STATE_DIR:
        lines.append(f"Environment=INFOMAE__STATE_DIR={STATE_DIR}")
    return lines


def _key_name(config: NodeConfig, node: NodeSettings) -> str:
    return f"{node.node}.key" if "{node}" in config.mqtt.key_file else "mqtt.key"


def _devices(kinds: Sequence[str]) -> str:
    if not kinds:
        return _SHUT
    lines = [
        "# Sensors: " + ", ".join(kinds) + ".",
        f"SupplementaryGroups={' '.join(DEVICES[kind][0] for kind in kinds)}",
        "DevicePolicy=closed",
        *(f"DeviceAllow={DEVICES[kind][1]}" for kind in kinds),
    ]
    # An IIO buffer is switched on through sysfs, which is otherwise read-only.
    lines += ["ReadWritePaths=-/sys/devices"] if "iio" in kinds else ["ProtectKernelTunables=yes"]
    return "\n".join(lines) + "\n"
