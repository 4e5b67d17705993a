"""`infomae-stream broker run`: an embedded MQTT 3.1.1 broker (amqtt), for trials and small sites.

It keeps nothing on disk and lets anybody in, so it listens on loopback unless told otherwise. Both do no harm to the
records: nodes send again what no application acknowledgement has named.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from infomae_stream.errors import ConfigError
from infomae_stream.telemetry import EventLog, configure_logging

SHUTDOWN_TIMEOUT_S: Final = 3.0
log = EventLog("infomae.broker")


class _SteadyDict(dict[Any, Any]):
    """Loops over what it held when the loop began: amqtt 0.12 awaits in such loops while clients change the dict."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(super().__iter__()))

    def items(self) -> list[tuple[Any, Any]]:  # type: ignore[override]
        return list(super().items())


def run(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 picks a free one, see the log.")] = 1883,
    allow_anonymous_network: Annotated[
        bool, typer.Option(help="Listen beyond loopback although nobody has to log in. For closed networks only.")
    ] = False,
) -> None:
    """Serve until SIGINT or SIGTERM. Anybody who can reach the port can publish and subscribe."""
    configure_logging()
    if not allow_anonymous_network and not _is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and this broker asks nobody for a password",
            where="broker run --host",
            fix="use mosquitto with TLS (deploy/), or add --allow-anonymous-network on a closed network",
        )
    # amqtt tells of every packet, and warns of every client that goes away.
    logging.getLogger("amqtt").setLevel(logging.ERROR)
    logging.getLogger("transitions").setLevel(logging.ERROR)
    asyncio.run(_serve(host, port or _free_port(host)))


async def _serve(host: str, port: int) -> None:
    from amqtt.broker import Broker
    from amqtt.errors import BrokerError

    config: dict[str, Any] = {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    # amqtt stumbles over clients that hang up while it greets them; that is their end, not the broker's.
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: log.warning("client_dropped", reason=str(context.get("exception", context["message"])))
    )
    broker = Broker(config)
    broker._subscriptions = _SteadyDict(broker._subscriptions)
    broker._retained_messages = _SteadyDict(broker._retained_messages)
    try:
        await broker.start()
    except BrokerError as e:
        raise ConfigError(f"cannot listen on port {port}: {e}", where="broker run --port", fix="is it in use?") from e
    log.info("broker_started", host=host, port=port, protocol="3.1.1")
    await stop.wait()
    ending = asyncio.ensure_future(broker.shutdown())
    await asyncio.wait({ending}, timeout=SHUTDOWN_TIMEOUT_S)
    if not ending.done():
        # Seen once in a thousand fault trials: amqtt waits for ever. It keeps nothing that could be lost.
        log.warning("broker_left_clients", after_s=SHUTDOWN_TIMEOUT_S)
        os._exit(0)
    await ending
    log.info("broker_stopped")


def _is_loopback(host: str) -> bool:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as e:
        raise ConfigError(f"{host} is no address of this machine: {e}", where="broker run --host") from e
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def _free_port(host: str) -> int:
    with socket.socket() as s:
        s.bind((host, 0))
        return int(s.getsockname()[1])
