"""A loaded machine is no broken node: whoever names this fixture gives each check all the time that it takes."""

from __future__ import annotations

import pytest

from collectors.deploying import check_machine
from tests.waiting import PATIENCE_S


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "check_broker.LOGIN_S",
        "check_broker.PUBLISH_S",
        "check_broker.TCP_TIMEOUT_S",
        "check_bundle.GOLDEN_S",
    ):
        monkeypatch.setattr(f"collectors.deploying.{name}", PATIENCE_S)
    monkeypatch.setattr("collectors.deploying.running.TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr("collectors.deploying.finding.PATIENCE_S", 4 * PATIENCE_S)
    monkeypatch.setattr(check_machine, "SLOW_FSYNC_S", 1e6)
