"""Every error the product raises on purpose. A message says what is wrong, where, and what to do.

InfomaeError
|-- ConfigError        a setting is wrong (exit 78)
|-- DataError          bytes, a recording, a label file or an array is not what it should be
|   |-- WireError      a message from the network cannot be read or must not be
|   `-- SourceError    a sensor or a recording cannot be read
|-- SourceClosed       a source has nothing more to give (no failure)
|-- OutboxError        the node's store cannot take or give records
|   `-- OutboxFull     ... because its disk or its byte limit is full
|-- LakeError          a table cannot be read or committed
|-- BundleError        a model bundle is refused
|-- TrainingError      a training run cannot go on
`-- ConnectionFailed   the broker refused or lost us in a way that retrying does not mend
"""

from __future__ import annotations


class InfomaeError(Exception):
    """Root of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__((f"{where}: " if where else "") + what + (f"; {fix}" if fix else ""))


class ConfigError(InfomaeError):
    exit_code = 78


class DataError(InfomaeError):
    pass


class WireError(DataError):
    """`reason` is one word of a closed set, fit for a metric's label and a dead letter's folder."""

    def __init__(self, what: str, *, reason: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.reason = reason


class SourceError(DataError):
    pass


class SourceClosed(InfomaeError):
    pass


class OutboxError(InfomaeError):
    pass


class OutboxFull(OutboxError):
    pass


class LakeError(InfomaeError):
    pass


class BundleError(InfomaeError):
    """`reason` is one word of a closed set, fit for a metric's label."""

    def __init__(self, what: str, *, reason: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.reason = reason


class TrainingError(InfomaeError):
    pass


class ConnectionFailed(InfomaeError):
    pass
