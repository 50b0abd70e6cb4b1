"""How a process ended, in words.

`supernode.py` and `executor.py` read this file by its path. It imports nothing of fedgraft.
"""

from __future__ import annotations

import signal


def how_it_ended(status: int) -> str:
    """Return the words for a process's exit status, negative for a signal."""
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    if -status == signal.SIGKILL:
        return f"was killed ({name}), as happens where memory is short"
    return f"was ended by {name}"
