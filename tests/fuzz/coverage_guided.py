"""The same targets under atheris: libFuzzer mutates on, from valid inputs, wherever a change reaches new code.

Each target is a process of its own: a crash, a hang or the memory limit of libFuzzer ends it and nothing else. It says
what it found in a JSON file.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from tests.fuzz.campaign import Tally, note, try_input
from tests.fuzz.targets import TARGETS, Target

# Whose branches lead. Only these: atheris rewrites some 100 functions a second, and numpy, pydantic, pyarrow and what
# else is imported have more than ten thousand. The judge's reader stands in for cbor2, which is not written in Python.
INSTRUMENTED: Final = frozenset(
    {"aligner.labels", "collectors.hub.received", "infomae_stream.config", "infomae_stream.node_config",
     "infomae_stream.stored_chunk", "infomae_stream.topics", "infomae_stream.types", "infomae_stream.wire",
     "tests.fuzz.plain_cbor", "tomllib._parser"}
)  # fmt: skip
MAX_INPUT_BYTES: Final = 4096
SEEDS: Final = 20
RSS_LIMIT_MB: Final = 1024
TIMEOUT_S: Final = 60  # for one input; a hang takes for ever


def missing() -> str:
    """Why this machine cannot; "" when it can."""
    return "" if importlib.util.find_spec("atheris") else "atheris is not installed (pip install -e '.[test]')"


def run_guided(target: Target, bad: int, seed: int) -> Tally:
    """Until `bad` inputs that the judge refuses have been tried; a process that ends before counts as a crash."""
    with tempfile.TemporaryDirectory(prefix="infomae-fuzz-") as folder:
        corpus, result, artifacts = Path(folder, "corpus"), Path(folder, "result.json"), Path(folder, "artifacts")
        corpus.mkdir()
        artifacts.mkdir()
        rng = random.Random(f"{seed} {target.name}")
        for i in range(SEEDS):
            (corpus / f"valid-{i}").write_bytes(target.valid(rng))
        arguments = [
            # More than enough; the process ends itself at `bad`.
            f"-runs={20 * bad + 1000}", f"-seed={seed}", f"-max_len={MAX_INPUT_BYTES}", "-len_control=0",
            f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={TIMEOUT_S}", f"-artifact_prefix={artifacts}/", str(corpus),
        ]  # fmt: skip
        command = [sys.executable, "-m", "tests.fuzz.coverage_guided", target.name, str(bad), str(result), *arguments]
        environment = {**os.environ, "TMPDIR": folder, "PYTHONHASHSEED": "0"}  # the same run from the same seed
        ended = subprocess.run(command, capture_output=True, env=environment, timeout=3600, check=False)
        if ended.returncode == 0 and result.exists():
            return Tally(**json.loads(result.read_text()))
        tally = Tally(crashed=1)
        last_words = ended.stderr.decode(errors="replace")[-1500:]
        for artifact in sorted(artifacts.iterdir())[:1]:
            note(tally, target, artifact.read_bytes(), f"ended the process with {artifact.name.split('-')[0]}")
        tally.examples.append(f"{target.name}: exit status {ended.returncode} before {bad} bad inputs: {last_words}")
        return tally


def instrument(atheris: Any) -> int:
    """Make the functions of INSTRUMENTED tell libFuzzer which branches they take; return how many there are."""
    found = [f for f in gc.get_objects() if type(f) is FunctionType and f.__module__ in INSTRUMENTED]
    for function in found:
        atheris.instrument_func(function)
    return len(found)


def mutator(target: Target, atheris: Any) -> Any:
    """Half of the changes are libFuzzer's, half those that know the format: bytes alone seldom get past a checksum."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        breaker = rng.choice(target.breakers)
        try:
            return breaker(rng, data)[:max_size]
        except Exception:  # noqa: BLE001 - it takes valid inputs only, and says so in its own way
            return breaker(rng, target.valid(rng))[:max_size]

    return mutate


def main() -> None:
    """`coverage_guided TARGET BAD RESULT [libFuzzer's options]`, the process of one target."""
    import atheris

    name, bad, result = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    target = next(t for t in TARGETS if t.name == name)
    tally = Tally()
    instrument(atheris)

    def one(payload: bytes) -> None:
        try_input(target, payload, tally)
        if tally.bad >= bad:
            result.write_text(json.dumps(asdict(tally)))
            os._exit(0)  # libFuzzer's own end is at a number of inputs, bad or not

    atheris.Setup([sys.argv[0], *sys.argv[4:]], one, custom_mutator=mutator(target, atheris))
    tracemalloc.start()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
