"""`python -m tests.faults.mutants.launch NAME -- <arguments of infomae-stream>`: the real program with that fault."""

from __future__ import annotations

import sys

from infomae_stream.cli import main
from tests.faults.mutants import patches

if __name__ == "__main__":
    _, mutant, _, *arguments = sys.argv
    sys.argv = ["infomae-stream", *arguments]
    with getattr(patches, mutant)():
        main()
