"""What a person did wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


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


class Refused(Exception):
    """A node will not do what it was asked to do; the coordinator sees the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Interrupted(Exception):
    """Ctrl-C. Says what was kept and how to go on; the command exits with status 130."""


class RunFailed(Exception):
    """The input was right and the run failed all the same. The command exits with status 1."""
