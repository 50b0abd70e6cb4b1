"""Show the examples in docstrings as code: an extension of griffe, by which mkdocstrings reads."""

from __future__ import annotations

from typing import Any

import griffe

PROMPTS = (">>>", "...")


class Examples(griffe.Extension):
    """Put lines that begin with `>>>`, with what they print, into a block of code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fence_examples(obj.docstring.value)


def fence_examples(text: str) -> str:
    """Return a docstring whose examples, up to an empty line, are fenced blocks."""
    lines: list[str] = []
    is_inside = False
    for line in [*text.splitlines(), ""]:
        if not is_inside and line.startswith(PROMPTS):
            lines.append("```pycon")
            is_inside = True
        elif is_inside and not line.strip():
            lines.append("```")
            is_inside = False
        lines.append(line)
    return "\n".join(lines)
