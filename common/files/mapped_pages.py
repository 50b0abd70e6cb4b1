"""Memory that is the content of a file: it can be given back, and is read again when it is needed.

    state = load_file(path)          # mapped: nothing is read yet
    fingerprint_of(state)            # all of it is in memory now
    give_back(state.values())        # and no more

The kernel takes such memory back by itself where it is short; until then it counts as the process's
own. To give it back loses nothing: what a process has changed, or has from no file, stays.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable

from torch import Tensor

# of madvise(2), Linux 5.4: the pages of a range may be taken back at once
MADV_PAGEOUT = 21


def give_back(tensors: Iterable[Tensor]) -> None:
    """Let the kernel take back the memory of tensors that are mapped from a file; where it cannot,
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in _ranges_of(tensors):
        # an older kernel knows no such advice: it stays as it is
        madvise(start, end - start, MADV_PAGEOUT)


def _ranges_of(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Return the whole pages in which tensors lie, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    spans = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
    for address, length in spans:
        start = address - address % mmap.PAGESIZE
        end = address + length
        if ranges and start <= ranges[-1][1] + mmap.PAGESIZE:
            first, last = ranges[-1]
            ranges[-1] = (first, max(last, end))
        else:
            ranges.append((start, end))
    return ranges
