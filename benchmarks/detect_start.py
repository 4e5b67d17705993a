"""What `node detect` does until its first score, in a process of its own: `detect_start.py BUNDLE PUBLIC_KEY`.

Reads and checks the bundle (signature, hashes, weights), makes the sessions, runs the golden vectors, scores a window.
"""

import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.precision import prove
from inference.runtimes import make_runtime
from infomae_stream.bundle import load_public_key, open_bundle

bundle = open_bundle(Path(sys.argv[1]), [load_public_key(Path(sys.argv[2]))], now_ns=0, min_version=0)
golden = bundle.golden
detector = prove(bundle, make_runtime("onnx", threads=1), "auto").detector
scores_Y = detector.scores({name: x_BCN[0] for name, x_BCN in golden.windows.items()})
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: a process that was forked from a large one starts with that one's.
peak_kb = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(
    json.dumps(
        {
            "score": float(scores_Y.max()),
            "precision": detector.precision,
            "rss_mb": int(peak_kb) / 1024,
            "cpu_s": used.ru_utime + used.ru_stime,
        }
    ),
    flush=True,
)
