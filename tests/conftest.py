"""What every test begins with, whatever the one before it has left behind."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import settings

# a machine at work is slow, not wrong
settings.register_profile("fedgraft", deadline=None)
settings.load_profile("fedgraft")


@pytest.fixture(autouse=True)
def as_a_node_begins() -> None:
    """One torch thread, as at a node: how a sum is split over threads shows in its last bits. Logs
    at their default.
    """
    torch.set_num_threads(1)
    logging.getLogger("fedgraft").setLevel(logging.NOTSET)
