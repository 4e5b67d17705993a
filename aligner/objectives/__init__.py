"""Alignment objectives (stage 2). One module an objective, one line here; the loop knows none of them by name."""

from typing import Any

from aligner.registry import resolve

OBJECTIVES = {
    "infomae": "aligner.objectives.infomae:InfoMae",
    "cca": "aligner.objectives.cca:Cca",
    "cmc": "aligner.objectives.cmc:Cmc",
    "comm": "aligner.objectives.comm:Comm",
    "concat": "aligner.objectives.concat:Concat",
    "focal": "aligner.objectives.focal:Focal",
    "gmc": "aligner.objectives.gmc:Gmc",
    "infmasking": "aligner.objectives.infmasking:InfMasking",
    "moco": "aligner.objectives.moco:Moco",
    "modalign": "aligner.objectives.modalign:ModAlign",
    "simclr": "aligner.objectives.simclr:SimClr",
    "tnc": "aligner.objectives.tnc:Tnc",
}


def objective_class(name: str) -> Any:
    """Return the class of objective `name`; raises ConfigError when there is none."""
    return resolve(OBJECTIVES, name, "train.align.objective")
