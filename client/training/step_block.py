"""How many examples go through the trained part at once on a card: as many as its memory has room
for, tried out on made-up records before any real one is read.

The batch of a step stays what the plan says: gradients of its blocks are added. The number is kept
in the node's store, since last bits depend on it: a plan has one for as long as the card is the
same. On the processor a batch goes through as a whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from fedgraft.common.errors import Code, Refused
from fedgraft.common.files.whole_files import write_json

log = logging.getLogger("fedgraft.client")
FOLDER = "blocks"


def choose_block(batch_size: int, step: Callable[[int], None]) -> int:
    """Return the most examples that fit at once: `batch_size`, or half of it, or a quarter, ….

    Args:
        step: takes a step on so many made-up examples, and raises `torch.OutOfMemoryError` where
            they do not fit.

    Raises:
        Refused: not even one fits.
    """
    block = batch_size
    while block >= 1:
        try:
            step(block)
            return block
        except torch.OutOfMemoryError:
            block //= 2
        # outside of the handler: the error holds on to what did not fit
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    what = "one example does not fit into this card's memory; write `device: cpu` in node.yaml"
    raise Refused(Code.SETUP, what)


def keep_block(store: Path, identity: str, device: str, choose: Callable[[], int]) -> int:
    """Return the block of a plan on a device: as it was chosen before, or chosen now and kept.

    Args:
        store: the node's.
        identity: hash of the agreement.
        device: in words, with the card's name.
    """
    about = {"agreement": identity, "device": device, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    file = store / FOLDER / f"{digest[:32]}.json"
    known = _read(file)
    if known is not None:
        return known
    block = choose()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(file, about | {"block": block})
    log.info("%d examples at once on %s", block, device)
    return block


def _read(file: Path) -> int | None:
    try:
        block = json.loads(file.read_text())["block"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return block if isinstance(block, int) and block >= 1 else None
