"""How training tells where it is."""

from typing import Protocol


class Progress(Protocol):
    """Called now and then from the training thread; must return at once.

    `stage` says what runs ("pretrain phone_imu", "align", ...), `done` of `total` steps are behind.
    """

    def __call__(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None: ...


def silent(stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
    """A Progress that tells nobody."""
