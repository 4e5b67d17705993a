"""Deliberately broken builds, and the check of the suite that must find each.

A suite that stays green when a step of delivery is left out proves nothing. So every mutant runs its check twice: with
the code as it is (it must pass) and with the fault (it must fail). This patching is the only exception to the rule
that tests do not replace our own code.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infomae_stream.errors import InfomaeError
from tests.faults import power_sqlite
from tests.faults.mutants import checks, patches

Check = Callable[[Path, str], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`patch` makes the fault, `check` must find it. processes: in programs that the launcher starts, not in ours."""

    patch: Callable[[], AbstractContextManager[None]]
    check: Check
    processes: bool = False

    @property
    def name(self) -> str:
        return self.patch.__name__

    def missing(self) -> str:
        """What this machine lacks for the check; "" when nothing."""
        if self.check is checks.outbox_under_power:
            return power_sqlite.missing()
        return "" if not self.processes or shutil.which("mosquitto") else "mosquitto is not installed"


MUTANTS: Final = (
    Mutant(patches.deleted_on_puback, checks.hub_comes_late, processes=True),
    Mutant(patches.acknowledged_before_the_commit, checks.hub_dies_at_its_commit, processes=True),
    Mutant(patches.no_folder_sync_of_segments, checks.lake_under_power),
    Mutant(patches.no_folder_sync_of_commits, checks.lake_under_power),
    Mutant(patches.no_sync_of_segments, checks.lake_under_power),
    Mutant(patches.no_folder_sync_of_a_new_outbox, checks.outbox_under_power),
    Mutant(patches.commits_not_synced, checks.outbox_under_power),
    Mutant(patches.seq_reused, checks.outbox_under_power),
    Mutant(patches.purged_by_age, checks.outbox_under_power),
    Mutant(patches.shed_in_silence, checks.outbox_under_power),
    Mutant(patches.acks_forgotten_at_start, checks.outbox_under_power),
    Mutant(patches.conflict_swallowed, checks.two_writers),
    Mutant(patches.nothing_sent_again, checks.delivery),
    Mutant(patches.stored_record_refused, checks.delivery),
    Mutant(patches.dead_letter_not_durable, checks.dead_letters),
    Mutant(patches.torn_checkpoints_stay, checks.checkpoints),
)


def run_mutants(mutants: Iterable[Mutant] = MUTANTS) -> list[tuple[str, bool]]:
    """(name, found) of each; a mutant counts as found only when its check passes without it."""
    passes: dict[Check, bool] = {}
    found = []
    for mutant in mutants:
        if mutant.check not in passes:
            passes[mutant.check] = failure(mutant, faulty=False) == ""
        found.append((mutant.name, passes[mutant.check] and failure(mutant, faulty=True) != ""))
    return found


def failure(mutant: Mutant, *, faulty: bool) -> str:
    """What the mutant's check says, with the fault or without; "" when it passes."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        if faulty and not mutant.processes:
            with mutant.patch():
                mutant.check(folder, "")
        else:
            mutant.check(folder, mutant.name if faulty else "")
    except (AssertionError, InfomaeError) as e:
        return str(e) or repr(e)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
