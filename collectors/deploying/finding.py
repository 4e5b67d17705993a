"""What a check finds: one line and, where something is wrong, one fix. No check may hang or end the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from infomae_stream.errors import InfomaeError

State = Literal["ok", "warning", "failed"]
PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """check: what was looked at. fix: empty when, and only when, all is well."""

    check: str
    state: State
    what: str
    fix: str = ""


def good(check: str, what: str) -> Finding:
    return Finding(check, "ok", what)


def warn(check: str, what: str, fix: str) -> Finding:
    return Finding(check, "warning", what, fix)


def bad(check: str, what: str, fix: str) -> Finding:
    return Finding(check, "failed", what, fix)


def refused(check: str, error: InfomaeError, fix: str) -> Finding:
    """An error of the product's own, which mostly brings its fix; `fix` is for one that does not."""
    return bad(check, f"{error.where}: {error.what}" if error.where else error.what, error.fix or fix)


def bounded(check: str, look: Callable[[], Iterable[Finding]], patience_s: float = 0.0) -> Sequence[Finding]:
    """What `look` finds. A look that raises, or takes longer than `patience_s` (0: the usual) and is left behind, is a
    finding.
    """
    patience_s = patience_s or PATIENCE_S
    found: list[Finding] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            found.extend(look())
        except Exception as e:  # noqa: BLE001 - the outermost frame of this thread: the other checks go on
            failure.append(e)

    thread = threading.Thread(target=run, name=f"doctor {check}", daemon=True)
    thread.start()
    thread.join(patience_s)
    if thread.is_alive():
        return [*found, bad(check, f"no answer within {patience_s:g} s", "look at `dmesg` and `systemctl status`")]
    if failure:
        e = failure[0]
        fix = "run it again with the node stopped; if it stays, report it with `infomae-stream --version`"
        return [*found, refused(check, e, fix) if isinstance(e, InfomaeError) else bad(check, repr(e), fix)]
    return found
