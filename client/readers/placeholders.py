"""Names of patients that are nobody's: NA, ANONYMOUS, unknown."""

from __future__ import annotations

import re

# in small letters, without what is neither letter nor digit
_PLACEHOLDERS = frozenset(
    (
        "",
        "na",
        "nan",
        "none",
        "null",
        "nil",
        "missing",
        "unknown",
        "unbekannt",
        "inconnu",
        "desconocido",
        "anon",
        "anonym",
        "anonymous",
        "anonymized",
        "anonymised",
        "anonymisiert",
        "deidentified",
        "redacted",
        "removed",
        "noname",
        "nobody",
        "xxx",
        "xxxx",
    )
)
# what stands for them where a file's own name of a patient does not leave the reader
PSEUDONYM_OF_NOBODY = "f" * 32


def is_placeholder(name: str) -> bool:
    """Return whether a name is nobody's, whatever else is in the data."""
    plain = re.sub(r"[\W_]+", "", name).lower()
    return plain in _PLACEHOLDERS or name == PSEUDONYM_OF_NOBODY
