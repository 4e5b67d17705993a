"""The command line, run in this process: `main` with its exit code and what it printed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from typing import Any

from infomae_stream.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def plain(self) -> str:
        """What was printed as errors, without the frames that rich draws around usage errors."""
        return re.sub(r"[\s│╭╮╰╯─]+", " ", self.err)

    def ok(self) -> Ran:
        assert self.code == 0, self.err + self.out
        return self

    def value(self) -> Any:
        return json.loads(self.ok().out)


def run_command(*arguments: object) -> Ran:
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    code: Any = 0
    sys.argv = ["infomae-stream", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as e:
        code = e.code
    finally:
        sys.argv = before
    return Ran(0 if code is None else int(code), out.getvalue(), err.getvalue())
