"""The link that row 5 cuts: what passes it, and what does not."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.link import IN, OUT, Link, missing_for_links

pytestmark = pytest.mark.skipif(bool(missing_for_links()), reason=missing_for_links())
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1.5).close()"


@pytest.fixture
def link() -> Iterator[Link]:
    with Link() as made:
        yield made


@pytest.fixture
def port(link: Link) -> Iterator[int]:
    with socket.create_server((link.host, 0)) as server:
        yield server.getsockname()[1]


def passes(link: Link, port: int) -> bool:
    """A program behind the link reaches a server on our side."""
    command = [*link.within, sys.executable, "-c", CONNECT, link.host, str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_link_that_is_cut_lets_nothing_through_until_it_is_mended(link: Link, port: int) -> None:
    assert passes(link, port)
    link.cut()
    assert not passes(link, port)
    link.mend()
    assert passes(link, port)


@pytest.mark.parametrize("way", [IN, OUT])
def test_packets_of_one_direction_are_lost(link: Link, port: int, way: str) -> None:
    link.drop(way)
    assert not passes(link, port)
    link.mend()
    assert passes(link, port)


def test_a_reset_ends_connections_and_what_comes_later_gets_through(link: Link, port: int) -> None:
    link.reset()
    assert not passes(link, port)
    link.mend()
    assert passes(link, port)
