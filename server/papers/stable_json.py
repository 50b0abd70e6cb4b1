"""JSON as bytes that are the same whenever the content is: what is hashed and signed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def stable_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the content as JSON with sorted keys. Raises `ValueError` for NaN or infinity."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
