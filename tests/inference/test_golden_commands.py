"""`bundle golden`: whether this machine computes what the trainer computed, by command."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.commands import Ran, run_command
from tests.tiny_bundle import PUBLIC_KEY, TinyBundle


def golden(folder: Path, bundle: TinyBundle, *arguments: str) -> Ran:
    bundle.write(folder / "bundle.zip")
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "k.pub").write_bytes(PUBLIC_KEY.public_bytes(*pem))
    return run_command("bundle", "golden", folder / "bundle.zip", "--key", folder / "k.pub", *arguments)


@pytest.mark.parametrize("int8", [False, True])
def test_a_bundle_that_computes_what_it_should(int8: bool, tmp_path: Path) -> None:
    told = golden(tmp_path, TinyBundle(int8=int8), "--json").value()
    assert told["passed"] and told["windows"] == 2 and told["machine"] == platform.machine()
    assert list(told["largest_difference"]) == (["fp32", "int8"] if int8 else ["fp32"])
    assert 0 < told["largest_difference"]["fp32"] < 1e-3
    assert "2 golden windows pass" in golden(tmp_path, TinyBundle()).ok().out


def test_other_scores_and_another_key_are_refused_with_their_reason(tmp_path: Path) -> None:
    wrong = TinyBundle()
    wrong.golden.scores["all"][:] = wrong.golden.scores["all"][:, ::-1]
    told = golden(tmp_path, wrong, "--json")
    assert told.code == 1 and json.loads(told.out)["reason"] == "golden"
    plain = golden(tmp_path, wrong)
    assert plain.code == 1 and "differ from the golden ones" in plain.err
    run_command("bundle", "keygen", tmp_path / "other").ok()
    key = tmp_path / "other" / "release.pub"
    other = run_command("bundle", "golden", tmp_path / "bundle.zip", "--key", key, "--json")
    assert other.code == 1 and json.loads(other.out)["reason"] == "signature"
