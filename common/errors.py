"""What a person did wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class UserError(Exception):
    """The user's input is wrong. The command prints it and exits with status 2, without a
    traceback.

    Args:
        what: what was wrong, with the value that was found.
        where: file, key, line or node.
        remedy: what to write or do instead.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        first = f"{self.where}: {self.what}" if self.where else self.what
        return f"{first}\n  → {self.remedy}" if self.remedy else first


class UserErrors(UserError):
    """Several mistakes, all told at once."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


class Code(StrEnum):
    """Why a node refused, for programs: a closed set that travels beside the words for people."""

    POLICY = "policy"  # this node's policy or approvals forbid it
    BUDGET = "budget"  # the privacy budget or its ledger does not allow it
    REPLAY = "replay"  # this round was run or begun here before
    DAMAGED = "damaged"  # what arrived is not what was announced; another copy may help
    MISSING = "missing"  # what the message speaks of is not here; to offer it again may help
    STORAGE = "storage"  # no room on this node's disk, or a record of it cannot be written
    MISMATCH = "mismatch"  # the message does not fit what was agreed on
    FROZEN = "frozen"  # the frozen part of the model is not what was agreed on
    MODEL = "model"  # differential privacy cannot be had for this model
    OUTPUT = "output"  # the model gives values that are not finite
    SETUP = "setup"  # this node's own files or data are not in order; its log says what
    FAILURE = "failure"  # an error in the node's code; its log says more
    UNKNOWN = "unknown"  # a node of another release gave no code, or one that is not listed here

    @classmethod
    def read(cls, text: object) -> Code:
        """Return the code of a reply; `UNKNOWN` where it has none of these."""
        return cls(text) if text in cls._value2member_map_ else cls.UNKNOWN


class Refused(Exception):
    """A node will not do what it was asked to do; the coordinator sees code and reason.

    Args:
        code: why, for programs.
        reason: why, in words for people; no data of the node in it.
    """

    def __init__(self, code: Code, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


class Interrupted(Exception):
    """Ctrl-C. Says what was kept and how to go on; the command exits with status 130."""


class RunFailed(Exception):
    """The input was right and the run failed all the same. The command exits with status 1."""
