"""`python -m demo`: real recordings through a whole deployment on this machine, watched while it happens."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import summary
from demo.deployment import BROKERS, Deployment
from demo.people import FULL, REDUCED
from demo.picture import save_picture
from demo.plain import PlainView
from demo.story_loop import play
from demo.summary_table import summary_table
from demo.terminal import LiveView
from demo.view import Scene
from infomae_stream.errors import InfomaeError

LIMIT_S = 335.0
TIME_OVER = "the time was over"
BY_HAND = "ended by hand"


def main() -> int:
    arguments = _arguments()
    console = Console()
    try:
        return _run(arguments, console)
    except InfomaeError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("ended by hand before everything was up", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for everything (default: demo-out)")
    parser.add_argument("--keep-running", action="store_true", help="leave it up at the end, until Ctrl-C")
    parser.add_argument("--broker", choices=BROKERS, default="auto", help="auto: mosquitto where it is installed")
    parser.add_argument("--reduced", action="store_true", help="few people, little training: for tests")
    parser.add_argument("--seconds", type=float, default=LIMIT_S, help="end after this, whatever has happened")
    parser.add_argument("--picture", type=Path, help="save the last view as an SVG file")
    parser.add_argument("--plain", action="store_true", help="lines instead of the live view")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, console: Console) -> int:
    # Asked to end, or the terminal is gone: as Ctrl-C. SIGINT too, which a shell's background job starts without.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    began_s = time.monotonic()
    deployment = Deployment(arguments.out, REDUCED if arguments.reduced else FULL, arguments.broker)
    truth = summary.Truth(deployment.devices)
    scene = Scene(deployment.addresses, arguments.seconds, truth.label, deployment.schedule.cast)
    live = console.is_terminal and not arguments.plain
    view = LiveView(scene, console) if live else PlainView(scene, console)
    cut_short, told_all = "", False
    status: dict[str, Any] = {}
    wrong: list[str] = []
    try:
        with view:
            deployment.start()
            watcher = deployment.watcher()
            try:
                result = play(deployment, watcher, arguments.seconds, view.show)
                if arguments.picture:
                    save_picture(scene, watcher.facts, arguments.picture)
                wrong += [
                    f"{name} ended with {code}; read logs/{name}.jsonl" for name, code in result.ended_early.items()
                ]
                cut_short = "" if result.in_time else TIME_OVER
                told_all = result.in_time
                while arguments.keep_running:
                    view.show(watcher.facts, watcher.update(0.5), "up until Ctrl-C")
            except KeyboardInterrupt:
                cut_short = "" if told_all else BY_HAND
            finally:
                status = watcher.facts.status
                watcher.close()
                deployment.processes.table()
                view.phase("stopping: nodes, hub, broker")
    finally:
        deployment.stop()
    told = summary.build(
        deployment.out,
        deployment.devices,
        status,
        deployment.processes.peaks_mb,
        time.monotonic() - began_s,
        time.time_ns(),
    )
    return _tell(deployment.out, told, wrong, cut_short, console)


def _tell(out: Path, told: dict[str, Any], wrong: list[str], cut_short: str, console: Console) -> int:
    (out / "summary.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    console.print(summary_table(told))
    console.print(f"everything lies in {out}; the numbers above in {out / 'summary.json'}", soft_wrap=True)
    wrong = (summary.losses(told) if cut_short == BY_HAND else summary.problems(told, complete=not cut_short)) + wrong
    if cut_short:
        console.print(f"{cut_short}, before the whole story was told", style="yellow")
    for problem in wrong:
        console.print(f"wrong: {problem}", style="bold red", soft_wrap=True)
    return 1 if wrong else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
