"""A message's content as bytes, to be hashed or kept: the same content, the same bytes."""

from __future__ import annotations

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto


def content_bytes(content: RecordDict) -> bytes:
    """Return a content as Flower's protocol writes it, its maps sorted."""
    return recorddict_to_proto(content).SerializeToString(deterministic=True)


def read_content(content: bytes) -> RecordDict:
    """Return the opposite of `content_bytes`."""
    return recorddict_from_proto(RecordDictProto.FromString(content))
