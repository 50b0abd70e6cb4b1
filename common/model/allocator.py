"""What becomes of memory that a batch gave back: kept for the next batch, or the kernel's again.

glibc gives a large block back when it is freed, and raises the size from which it does so to that
of the largest block that it has seen freed.

- Small batches, many of them: megabytes are freed and asked for again at each, and every page is
  paid for anew: half a million page faults, a tenth of the time, in 200 small rounds of a ResNet-20
  on two threads. There it is kept.
- Large networks: between blocks of many sizes lie holes that nothing fits into. A step of ViT-L/16
  with gradient checkpointing held 2.8 GB for 1.0 GB of tensors. There it is given back.

It is told once for the whole process, and only glibc has such a setting; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's <malloc.h>
KEPT = 32 * 2**20  # bytes; the largest threshold that every glibc takes
RETURNED = 2**18  # bytes


def keep_freed_memory() -> bool:
    """Let the C library keep up to `KEPT` bytes of freed memory in each arena. Returns whether it
    can.
    """
    return _set_thresholds(KEPT)


def return_freed_memory() -> bool:
    """Let the C library give every block of `RETURNED` bytes back as it is freed. Returns whether
    it can.
    """
    return _set_thresholds(RETURNED)


def _set_thresholds(size: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(name, size) == 1 for name in (TRIM_THRESHOLD, MMAP_THRESHOLD))
