"""The last answers under a private agreement: asked again, a node sends the same bytes.

A coordinator that was killed does not know which answers were on their way. To train again would
spend ε twice; to refuse would end the run. An answer that left once tells nothing new.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedgraft.common.errors import Code, Refused
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.wire.content_bytes import content_bytes, read_content

if TYPE_CHECKING:
    from flwr.app import RecordDict

_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class KeptAnswers:
    """The answers of one node under one agreement: the last to each kind of message.

        kept = KeptAnswers(node.store / "answers", agreement_hash(plan))
        kept.keep("train", message.content, answer)
        kept.find("train", message.content)  # None for another round, or another adapter

    Args:
        folder: of the node's store.
        plan: the agreement's hash.
        durable: whether an answer is on the disk before it leaves.
    """

    folder: Path
    plan: str
    durable: bool = True

    def find(self, kind: str, question: RecordDict) -> RecordDict | None:
        """Return what was answered to this very question; None: nothing that is still here.

        A file that is damaged is no answer.
        """
        try:
            content = self._path(kind).read_bytes()
        except OSError:
            return None
        asked, whole, body = (
            content[:_DIGEST],
            content[_DIGEST : 2 * _DIGEST],
            content[2 * _DIGEST :],
        )
        if asked != digest_of(question) or whole != hashlib.sha256(body).digest():
            return None
        return read_content(body)

    def keep(self, kind: str, question: RecordDict, answer: RecordDict) -> None:
        """Keep an answer before it leaves, in the place of the one before it.

        Raises:
            Refused: the disk does not take it.
        """
        body = content_bytes(answer)
        content = digest_of(question) + hashlib.sha256(body).digest() + body
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(kind), content, mode=0o600, durable=self.durable)
        except OSError as error:
            what = f"an answer cannot be kept here ({error.strerror}); it is not sent"
            raise Refused(Code.STORAGE, what) from error

    def _path(self, kind: str) -> Path:
        return self.folder / f"{self.plan.removeprefix('sha256:')}-{kind}"


def digest_of(question: RecordDict) -> bytes:
    """Return SHA-256 of all that a message brings: agreement, round, and the adapter's bytes."""
    return hashlib.sha256(content_bytes(question)).digest()
