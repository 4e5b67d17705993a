"""The model: is there one, whole and signed by whom we trust, and does this machine compute what it should?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Final

from collectors.deploying.finding import Finding, bad, good, refused, warn
from infomae_stream.bundle import load_public_key
from infomae_stream.bundle_store import POINTER, BundleStore, Installed
from infomae_stream.errors import BundleError, ConfigError
from infomae_stream.node_config import NodeConfig
from infomae_stream.supervisor import PROGRAM

GOLDEN_S: Final = 45.0
REPLACE_FIX: Final = "release the weights again at the hub, under a new version: the node then fetches that"
REFUSED_FIX: Final = {
    "signature": "copy the release.pub of the hub that released it",
    "golden": "this machine computes something else: report it with `infomae-stream --version`",
}
KEY_FIX: Final = "copy release.pub from the folder that `hub enroll` printed at the hub"


def check_bundle(config: NodeConfig) -> Iterator[Finding]:
    """The keys, then the bundle that serves. Its golden vectors run in a process of their own: a library that crashes
    on this processor ends that one only.
    """
    if not config.detect.enabled:
        yield good("bundle", "detection is switched off")
        return
    if not config.detect.trusted_keys:
        fix = 'copy release.pub from the hub and set trusted_keys = ["tls/release.pub"] in [detect]'
        yield bad("bundle", "detect.trusted_keys is empty: every bundle is refused", fix)
        return
    try:
        for name in config.detect.trusted_keys:
            load_public_key(config.path(name))
    except ConfigError as e:
        yield bad("bundle", f"{e.where}: {e.what}", KEY_FIX)  # whose own fix is for the hub
        return
    installed = None
    if (config.bundle_dir / POINTER).exists():
        try:
            store = BundleStore(config.bundle_dir)
        except BundleError as e:
            yield refused("bundle", e, "restore it from a backup")
            return
        installed = store.current
    if installed is None:
        fix = "it comes by itself when the hub has released one: `hub run` trains once there are enough pairs"
        yield warn("bundle", "none is installed yet: nothing is detected", fix)
        return
    yield _run_golden(config, store, installed)


def _run_golden(config: NodeConfig, store: BundleStore, installed: Installed) -> Finding:
    keys = [word for name in config.detect.trusted_keys for word in ("--key", str(config.path(name)))]
    file = str(store.path(installed))
    command = [*PROGRAM, "bundle", "golden", file, *keys, "--runtime", config.detect.runtime, "--json"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=GOLDEN_S, check=False)
    except subprocess.TimeoutExpired:
        fix = "is the processor busy or throttled? see `vcgencmd get_throttled`"
        return bad("bundle", f"its golden vectors take longer than {GOLDEN_S:g} s", fix)
    lines = ended.stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1])
    except (ValueError, IndexError):
        why = f"signal {-ended.returncode}" if ended.returncode < 0 else ended.stderr.strip()[-200:]
        return bad("bundle", f"the runtime does not start here: {why}", "pip install --force-reinstall onnxruntime")
    if not told["passed"]:
        return bad("bundle", told["error"], REFUSED_FIX.get(told["reason"], REPLACE_FIX))
    if told["int8_refused"]:
        return warn(
            "bundle", f"version {told['version']} serves fp32: {told['int8_refused']}", 'set precision = "fp32"'
        )
    worst = max(told["largest_difference"].values())
    what = f"version {told['version']} verifies, and its {told['windows']} golden windows pass"
    return good("bundle", f"{what} ({', '.join(told['largest_difference'])}, largest difference {worst:.2g})")
