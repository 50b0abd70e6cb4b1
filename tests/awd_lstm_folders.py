"""Folders of tiny AWD-LSTMs under the names that fastai 2.8 writes, around torch's own LSTM."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

SPECIAL = ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
WORDS = ("a", "and", "cough", "fever", "rash", "pain", "three", "weeks", "no", "nothing", ".", ",")
# fastai fills up to a multiple of eight
VOCABULARY = (*SPECIAL, *WORDS, "\n", "xxfake", "xxfake")
WIDTH = 6
HIDDEN = 10


class TheirEncoder(nn.Module):
    """An AWD-LSTM in eval mode: a table, and one of torch's LSTMs after the other."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Embedding(len(VOCABULARY), WIDTH)
        widths = [WIDTH, *[HIDDEN] * (layers - 1), WIDTH]
        lstms = []
        for entering, leaving in pairwise(widths):
            lstms.append(nn.LSTM(entering, leaving, batch_first=True))
        self.rnns = nn.ModuleList(lstms)

    def forward(self, numbers: Tensor) -> list[Tensor]:
        """Numbers of words (n, length) → the output of each layer."""
        outputs: list[Tensor] = []
        states = self.encoder(numbers)
        for lstm in self.rnns:
            states, _ = lstm(states)
            outputs.append(states)
        return outputs


def their_encoder(layers: int = 3, seed: int = 0) -> TheirEncoder:
    """Return an encoder with lively values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TheirEncoder(layers).eval()
        for parameter in net.parameters():
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.3)
    return net


def name_as_fastai(net: TheirEncoder, prefix: str = "") -> dict[str, Tensor]:
    """Return an encoder's tensors as `learn.save_encoder` names them."""
    named = {
        "encoder.weight": net.encoder.weight.detach(),
        "encoder_dp.emb.weight": net.encoder.weight.detach().clone(),
    }
    for number, lstm in enumerate(net.rnns):
        state = lstm.state_dict()
        raw = state.pop("weight_hh_l0")
        named[f"rnns.{number}.weight_hh_l0_raw"] = raw
        # what the last dropout of the training left of it
        named[f"rnns.{number}.module.weight_hh_l0"] = raw * 0.5
        named |= {f"rnns.{number}.module.{name}": tensor for name, tensor in state.items()}
    return {f"{prefix}{name}": tensor for name, tensor in named.items()}


def write_encoder(folder: Path, layers: int = 3) -> Path:
    """Write the folder of a tiny encoder with its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(name_as_fastai(their_encoder(layers)), folder / "encoder.pth")
    (folder / "vocab.json").write_text(json.dumps(list(VOCABULARY)))
    return folder
