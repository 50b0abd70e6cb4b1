"""How many bytes a message has on the wire."""

from __future__ import annotations

from flwr.app import Message


def message_bytes(message: Message) -> int:
    """Return the size of a message in bytes as Flower serialises it: its header, records, arrays
    and chunks.

    Children are summed as often as they are referred to: Flower sends a chunk once for each message
    and de-duplicates inside it only, which matters for all-zero tensors; they are counted once
    here, too.
    """
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        no_object_id_recompute,
    )

    # or Flower serialises a child anew for each of its parents
    with no_object_id_recompute():
        size = 0
        for part in get_all_nested_objects(message).values():
            size += len(part.deflate())
        return size
