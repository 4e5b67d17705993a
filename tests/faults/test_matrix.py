"""The fault matrix at reduced length, through the same runner as `scripts/faults`; and the runner itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from infomae_stream.failpoints import FAILPOINTS
from tests.faults import runner
from tests.faults.__main__ import main
from tests.faults.report import RowSum
from tests.faults.rows import ROWS
from tests.faults.trial import Row, TrialResult

# Of one process or more each; the rows of others have tests of their own.
PROCESS_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 15, 19)


def steady(rng: random.Random, folder: Path) -> TrialResult:
    (folder / "drawn").write_text(str(rng.random()))
    return TrialResult(accepted=10, lost=0, logical_duplicates=0, recovery_s=rng.random())


def lying(rng: random.Random, folder: Path) -> TrialResult:
    return TrialResult(accepted=10, lost=1, logical_duplicates=0)


def raising(rng: random.Random, folder: Path) -> TrialResult:
    raise RuntimeError("this trial broke")


def shy(rng: random.Random, folder: Path) -> TrialResult:
    return TrialResult(accepted=1, lost=0, logical_duplicates=0, hits=("outbox.before_commit",))


STEADY = Row(91, "steady", steady, 1.0)
LYING = Row(92, "loses a record", lying, 1.0)
RAISING = Row(93, "breaks", raising, 1.0)
ABSENT = Row(94, "cannot run here", steady, 1.0, missing=lambda: "no such disk")
TABLE = {
    number: f"tests.faults.test_matrix:{name}"
    for number, name in ((91, "STEADY"), (92, "LYING"), (93, "RAISING"), (94, "ABSENT"), (95, "NOT_WRITTEN"))
}


def totals_of(out: str) -> dict[str, int]:
    totals: dict[str, int] = json.loads(out.splitlines()[-1])
    return totals


def test_a_round_that_passes_ends_with_its_totals_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--trials", "5", "--rows", "91", "--json", "--jobs", "1", "--folder", str(tmp_path)], TABLE) == 0
    out = capsys.readouterr().out
    row = json.loads(out.splitlines()[0])
    assert (row["row"], row["trials"], row["accepted"], row["failed"]) == (91, 5, 50, 0)
    totals = totals_of(out)
    assert list(totals) == [
        "trials",
        "accepted",
        "lost",
        "logical_duplicates",
        "physical_duplicates",
        "shed",
        "mutants",
        "mutants_found",
    ]
    assert (totals["trials"], totals["lost"]) == (5, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("row", "said"), [(92, "lost 1"), (93, "RuntimeError: this trial broke")])
def test_a_row_that_fails_is_told_with_the_command_that_repeats_it_and_its_folder_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: int, said: str
) -> None:
    assert (
        main(["--trials", "1", "--rows", str(row), "--seed", "7", "--jobs", "1", "--folder", str(tmp_path)], TABLE) == 1
    )
    told = capsys.readouterr()
    assert said in told.err and f"scripts/faults --rows {row} --seed 7 --only 0" in told.err
    assert (next(tmp_path.iterdir()) / f"{row}-0").is_dir()
    assert totals_of(told.out)["lost"] == (1 if row == 92 else 0)


@pytest.mark.parametrize(("row", "why"), [(94, "no such disk"), (95, "not written")])
def test_a_row_that_cannot_run_is_named_with_the_reason_and_the_round_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: int, why: str
) -> None:
    assert main(["--trials", "2", "--rows", f"91,{row}", "--jobs", "1", "--folder", str(tmp_path)], TABLE) == 1
    told = capsys.readouterr()
    assert f"row {row} is not available: {why}" in told.err
    assert totals_of(told.out)["trials"] == 2


def test_an_unknown_row_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["--rows", "16"], TABLE)
    assert e.value.code == 2 and "no row 16" in capsys.readouterr().err


def test_a_seed_a_row_and_an_index_give_the_same_numbers_again() -> None:
    drawn = [runner.rng_of(row, seed, index).random() for row in (1, 2) for seed in (1, 2) for index in (0, 1)]
    assert len(set(drawn)) == 8
    assert drawn[0] == runner.rng_of(1, 1, 0).random()


def test_shares_add_up_and_favour_cheap_rows_without_starving_dear_ones() -> None:
    rows = {n: Row(n, "", steady, 7.0 if n <= 12 else 0.5) for n in range(1, 18)}
    share = runner.shares(1000, rows)
    assert sum(share.values()) == 1000
    assert all(25 <= share[n] <= 60 for n in range(1, 13))
    assert min(share[n] for n in range(13, 18)) > 60
    assert runner.shares(3, rows) == dict.fromkeys(rows, 1)


def test_a_full_round_that_never_kills_at_a_failpoint_has_failed() -> None:
    row = Row(1, "", shy, 1.0, failpoints=("outbox.before_commit", "outbox.after_commit"))
    full, short = RowSum(row, 25), RowSum(row, 2)
    for sums in (full, short):
        for _ in range(sums.planned):
            sums.add(shy(random.Random(), Path()))
    assert full.never_hit == ["outbox.after_commit"] and not full.passed
    assert short.passed


def test_row_1_kills_at_every_failpoint_of_node_and_ingest() -> None:
    ours = {name for name in FAILPOINTS if name.partition(".")[0] in ("outbox", "uplink", "segment", "lake", "ingest")}
    assert set(runner.load_row(ROWS[1]).failpoints) == ours


@pytest.mark.slow
def test_the_matrix_holds_at_reduced_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [n for n in PROCESS_ROWS if not runner.load_row(ROWS[n]).missing()]
    code = main(
        ["--trials", str(len(rows)), "--seed", "3", "--rows", ",".join(map(str, rows)), "--folder", str(tmp_path)]
    )
    told = capsys.readouterr()
    assert code == 0, told.err
    totals = totals_of(told.out)
    assert (totals["trials"], totals["lost"], totals["logical_duplicates"]) == (len(rows), 0, 0)
    assert totals["accepted"] > 300 * len(rows) / 2


# -- what the matrix found, each by the trial that found it ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "seed", "index"), [pytest.param(8, 1, 33, id="a descriptor was synced again after its sync had failed")]
)
def test_a_trial_that_once_failed_passes(tmp_path: Path, number: int, seed: int, index: int) -> None:
    row = runner.load_row(ROWS[number])
    if why := row.missing():
        pytest.skip(why)
    result = row.trial(runner.rng_of(number, seed, index), tmp_path)
    assert result.passed, result.failures
