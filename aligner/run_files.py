"""Names of the files in a run's folder; here, so that who only reads them need not import the trainer."""

from __future__ import annotations

from typing import Final

SNAPSHOT: Final = "snapshot.json"
STAGE_ONE_MODEL: Final = "stage_1.pt"
STAGE_ONE_RECORD: Final = "stage_1.json"  # written after the model: a model without it is not used
MODEL: Final = "model.pt"
HEAD: Final = "head.onnx"
GOLDEN: Final = "golden.npz"
CANDIDATE: Final = "candidate.json"  # written last: a folder without it is a run that did not end
