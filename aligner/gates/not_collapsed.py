"""The shared embedding uses several directions: its smallest effective rank over the modalities reaches the limit."""

from __future__ import annotations

from typing import Self

from aligner.gates import Candidate, Verdict, at_least
from infomae_stream.hub_config import GateSettings


class NotCollapsed:
    """Reads the alignment's monitors (METHOD 3.5): a U of one direction can please every loss."""

    def __init__(self, min_effective_rank: float) -> None:
        self.min_effective_rank = min_effective_rank

    @classmethod
    def make(cls, settings: GateSettings) -> Self:
        return cls(settings.min_effective_rank)

    def judge(self, candidate: Candidate) -> Verdict:
        ranks = {n: r for n, r in candidate.report.monitors.effective_rank.items() if n.endswith(".u")}
        worst = min(ranks, key=lambda name: ranks[name], default="")
        value = ranks[worst] if worst else float("nan")
        return at_least("not_collapsed", value, self.min_effective_rank, f"effective rank of {worst or 'U'}")
