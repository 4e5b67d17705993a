"""A network of its own for programs, on a link that can be cut: a network namespace, a veth pair, iptables in it.

Nothing of this machine's own network is touched. The namespace is that of a process that ends with ours, and goes with
it, links and rules included.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from types import TracebackType
from typing import Final

from tests.faults.processes import wait_for

IN, OUT = "INPUT", "OUTPUT"  # what the programs receive, what they send
_TOOLS: Final = ("ip", "iptables", "unshare", "nsenter", "setpriv")


@cache
def missing_for_links() -> str:
    """Why no such link can be made here, "" when it can."""
    if os.geteuid() != 0:
        return "needs root, to make a network namespace"
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(lacking)} (Debian: iproute2, iptables, util-linux)"
    try:
        with Link() as link:
            link.drop(IN)
    except (subprocess.CalledProcessError, AssertionError) as e:
        said = e.stderr.strip() if isinstance(e, subprocess.CalledProcessError) else str(e)
        return f"no network namespace can be made: {said}"
    return ""


class Link:
    """host: our end's address, reachable from both sides; within: the command prefix that puts a program behind it."""

    def __init__(self) -> None:
        # One at a time a process, and two processes are never as far apart as this wraps.
        number = os.getpid() & 0xFFFF
        self._name = f"faults{number}"
        net = f"10.{64 + (number >> 14)}.{number >> 6 & 255}"
        self.host, self._there = (f"{net}.{(number & 63) * 4 + i}" for i in (1, 2))
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def within(self) -> list[str]:
        assert self._holder is not None
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def cut(self) -> None:
        """The cable is out, on both ends."""
        _run("ip", "link", "set", self._name, "down")

    def mend(self) -> None:
        """As it was: plugged in, no rules."""
        _run("ip", "link", "set", self._name, "up")
        _run(*self.within, "iptables", "-F")

    def drop(self, way: str, share: float = 1.0) -> None:
        """Packets of this direction are lost, all of them or a random share."""
        some = [] if share == 1 else ["-m", "statistic", "--mode", "random", "--probability", f"{share:.3f}"]
        _run(*self.within, "iptables", "-A", way, *some, "-j", "DROP")

    def reset(self) -> None:
        """Whatever is sent meets a reset: every connection is dead once `mend` lets packets through again."""
        _run(*self.within, "iptables", "-F")
        _run(*self.within, "iptables", "-A", OUT, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")

    def __enter__(self) -> Link:
        ours = os.readlink("/proc/self/ns/net")
        self._holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
        pid = self._holder.pid
        try:
            wait_for(lambda: os.readlink(f"/proc/{pid}/ns/net") != ours, 20, "a network namespace")
            _run("ip", "link", "add", self._name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
            _run("ip", "address", "add", f"{self.host}/30", "dev", self._name)
            _run("ip", "link", "set", self._name, "up")
            _run(*self.within, "ip", "address", "add", f"{self._there}/30", "dev", "eth0")
            _run(*self.within, "ip", "link", "set", "eth0", "up")
            _run(*self.within, "ip", "link", "set", "lo", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._holder is not None
        self._holder.kill()
        self._holder.wait()
        # The kernel takes an abandoned namespace down a little later; the next link of this name must not meet it.
        subprocess.run(["ip", "link", "delete", self._name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
