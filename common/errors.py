"""What a person did wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class UserError(Exception):
    """The user's input is wrong. The command prints it and exits with status 2, without a
    traceback.

        raise UserError("0 rounds", where="plan.yaml:5", remedy="write 1 or more")

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
        text = self.what
        if self.where:
            text = f"{self.where}: {text}"
        if self.remedy:
            text += f"\n  → {self.remedy}"
        return text


class UserErrors(UserError):
    """Several mistakes, all reported at once."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


class Code(StrEnum):
    """Why a node refused, for programs: a closed set that travels beside the words for people."""

    # this node's policy or approvals forbid it
    POLICY = "policy"
    # the privacy budget or its ledger does not allow it
    BUDGET = "budget"
    # this round was run or begun here before
    REPLAY = "replay"
    # what arrived is not what was announced; another copy may help
    DAMAGED = "damaged"
    # what the message speaks of is not here; to offer it again may help
    MISSING = "missing"
    # no room on this node's disk, or a record of it cannot be written
    STORAGE = "storage"
    # the message does not fit what was agreed on
    MISMATCH = "mismatch"
    # the frozen part of the model is not what was agreed on
    FROZEN = "frozen"
    # differential privacy cannot be had for this model
    MODEL = "model"
    # the model gives values that are not finite
    OUTPUT = "output"
    # this node's own files or data are not in order; its log says what
    SETUP = "setup"
    # an error in the node's code; its log says more
    FAILURE = "failure"
    # a node of another release gave no code, or one that is not listed here
    UNKNOWN = "unknown"

    @classmethod
    def read(cls, text: object) -> Code:
        """Return the code of a reply; `UNKNOWN` where it has none of these."""
        if text in cls._value2member_map_:
            return cls(text)
        return cls.UNKNOWN


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
