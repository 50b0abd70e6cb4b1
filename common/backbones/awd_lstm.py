"""The family of ULMFiT's encoder, `fastai/awd-lstm`: an AWD-LSTM (Merity et al. 2018) as fastai's
`learn.save_encoder` writes it, in a folder beside its vocabulary; fastai itself is never imported.

    encoder.pth             or .pt, .safetensors: the one file of tensors there
    vocab.json, vocab.txt   fastai's `dls.vocab[0]`: a JSON list, or a token a line

A text becomes a vector as in fastai's classifier (Howard and Ruder 2018, section 3.3): the last
state, the largest of each channel, and the mean, over real tokens. Dropout, of weights too, is
nothing in a frozen network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    Pooling,
    State,
    Step,
)
from fedgraft.common.backbones.forward_steps import mean_of_places
from fedgraft.common.backbones.masked_states import Run, call_block, last_token, pack, unpack
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import SUFFIXES, read_tensors
from fedgraft.common.inputs.text import (
    DEFAULT_LENGTH,
    VOCABULARY,
    TextPreparation,
    is_token,
    prepare_texts,
)
from fedgraft.common.inputs.tokenizer_file import bytes_of, tensor_of
from fedgraft.common.inputs.word_tokenizer import (
    LARGEST_FILE,
    check_tokens,
    open_vocabulary,
    write_vocabulary,
)

NAME = "fastai/awd-lstm"
VOCABULARY_FILES = ("vocab.json", "vocab.txt")
# that `learn.save` of a language model, and of a classifier, puts before the encoder's names
PREFIXES = ("", "0.", "0.module.")
MOST_LAYERS = 16
# what the last state, the largest and the mean make of a width
PARTS = 3
_REMEDY = "save it in fastai: learn.save_encoder('encoder')"
_LAYER = re.compile(r"rnns\.(\d+)\.inputs\.weight")


class LstmLayer(nn.Module):
    """One LSTM over the tokens of a text.

        layer = LstmLayer(inputs=400, width=1152)
        layer(states)  # (n, length, 400) → (n, length, 1152)

    What tokens give to the gates is one Linear over all of them, and adapters serve it; the map
    from one state to the next is called once a token, and stays as it is.

    Args:
        inputs, width: channels of what comes in, and of what goes out.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, 4 * width)
        self.recurrent = nn.Parameter(torch.empty(4 * width, width))
        nn.init.uniform_(self.recurrent, -(width**-0.5), width**-0.5)

    @property
    def block_channels(self) -> int:
        """Channels of its output."""
        return self.recurrent.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """(n, length, inputs) → (n, length, width); gates in torch's order."""
        state = x.new_zeros(len(x), self.block_channels)
        cell = torch.zeros_like(state)
        states: list[Tensor] = []
        for entering in self.inputs(x).unbind(1):
            gates = entering + state @ self.recurrent.T
            let_in, keep, new, let_out = gates.chunk(4, dim=1)
            cell = keep.sigmoid() * cell + let_in.sigmoid() * new.tanh()
            state = let_out.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, dim=1)


class AwdLstm(nn.Module):
    """A table of words and LSTMs.

        net = AwdLstm(tokens=60000, widths=(1152, 1152, 400), files={})
        net(tokens)  # int64 (n, length), −1 behind the end of a text → (n, 2)

    Args:
        tokens: how many words there are.
        widths: of each LSTM; the last is that of the table, too.
        files: kept among its tensors, bytes by name: its vocabulary.
    """

    def __init__(self, tokens: int, widths: tuple[int, ...], files: Mapping[str, bytes]) -> None:
        super().__init__()
        last = widths[-1]
        self.encoder = nn.Embedding(tokens, last)
        entering = (last, *widths[:-1])
        layers = [LstmLayer(*pair) for pair in zip(entering, widths, strict=True)]
        self.rnns = nn.ModuleList(layers)
        for name, content in files.items():
            self.register_buffer(name, tensor_of(content))
        self.classifier = nn.Linear(PARTS * last, 2)

    def call(self, run: Run, states: Tensor, here: Tensor) -> Tensor:
        """Run a layer, or an adapter behind one: no token sees a later one, padding neither."""
        return run(states)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) → logits (n, 2)."""
        x = embed_words(self, tokens)
        for layer in self.rnns:
            x = call_block(self, layer, x)
        return self.classifier(concat_pool(self, x))


def embed_words(net: Any, tokens: Tensor) -> Tensor:
    """Tokens (n, length) → vectors of the words, and mask (n, length, width + 1)."""
    return pack(net.encoder(tokens.clamp(min=0)), is_token(tokens))


def concat_pool(net: Any, x: Tensor) -> Tensor:
    """States and mask (n, length, width + 1) → last state, largest and mean (n, 3 · width)."""
    states, here = unpack(x)
    largest = states.masked_fill(here[..., None] == 0, -torch.inf).amax(1)
    return torch.cat([last_token(states, here), largest, mean_of_places(states, here)], dim=1)


# ── the family ────────────────────────────────────────────────────────────────────────────────────
def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network in its own initialisation. Raise `UserError` without a vocabulary."""
    if VOCABULARY not in shape.files:
        what = f"{name} is a folder with an encoder and its vocabulary, and none is named"
        raise UserError(what, where="backbone.weights", remedy="write the folder: ./ulmfit")
    tokens = open_vocabulary(shape.files[VOCABULARY]).tokens
    return AwdLstm(len(tokens), shape.hidden, shape.files)


def refuse_names(name: str, weights: str) -> dict[str, Tensor]:
    """Raise `UserError`: nothing is fetched."""
    what = f"{weights!r} is no folder here, and nothing is fetched"
    raise UserError(what, where="backbone.weights", remedy="write the folder, such as ./ulmfit")


def read_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return the widths that these tensors have, and their vocabulary. Raise `UserError` where
    they are no such network's.
    """
    content = state.get(VOCABULARY)
    widths: dict[int, int] = {}
    for name, tensor in state.items():
        found = _LAYER.fullmatch(name)
        if found is not None:
            widths[int(found[1])] = tensor.shape[0] // 4
    is_whole = sorted(widths) == list(range(len(widths)))
    if content is None or not is_whole or not 1 <= len(widths) <= MOST_LAYERS:
        what = "these are not the tensors of an AWD-LSTM and its vocabulary"
        remedy = "give the folder of an encoder, or a file that fedgraft wrote"
        raise UserError(what, where=where, remedy=remedy)
    files = {VOCABULARY: bytes_of(content)}
    open_vocabulary(files[VOCABULARY])
    hidden = tuple(widths[layer] for layer in sorted(widths))
    return replace(shape, hidden=hidden, files=files)


def read_folder(
    folder: Path, size: int | None, pool: Pooling | None
) -> tuple[State, TextPreparation]:
    """Return the tensors of an encoder's folder and its preparation.

    Args:
        size: tokens of a text; None: the usual number.

    Raises:
        UserError: not one file of tensors and one vocabulary, or they do not belong together.
    """
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    if len(files) != 1:
        what = f"{len(files)} files of tensors, and one is the encoder"
        raise UserError(what, where=str(folder), remedy=f"{_REMEDY}; put that file there alone")
    state = rename_tensors(read_tensors(files[0]), str(files[0]))
    tokens = read_vocabulary(folder)
    rows = state["encoder.weight"].shape[0]
    if rows != len(tokens):
        what = f"a vocabulary of {len(tokens):,} tokens for an encoder that knows {rows:,}"
        remedy = "write the vocabulary that it was trained with: list(dls.vocab[0])"
        raise UserError(what, where=str(folder), remedy=remedy)
    state[VOCABULARY] = tensor_of(write_vocabulary(tokens))
    return state, TextPreparation(size or DEFAULT_LENGTH)


def read_vocabulary(folder: Path) -> tuple[str, ...]:
    """Return the tokens of a folder's vocabulary. Raise `UserError` where it has none, or two."""
    files = [folder / name for name in VOCABULARY_FILES if (folder / name).is_file()]
    remedy = "write fastai's: json.dump(list(dls.vocab[0]), open('vocab.json', 'w'))"
    if len(files) != 1:
        what = f"{len(files)} vocabularies; {' or '.join(VOCABULARY_FILES)} must be there"
        raise UserError(what, where=str(folder), remedy=remedy)
    (path,) = files
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE:,} bytes")
        text = path.read_text(encoding="utf-8")
        tokens = json.loads(text) if path.suffix == ".json" else text.split("\n")
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read ({type(error).__name__})"
        raise UserError(what, where=str(path), remedy=remedy) from error
    if path.suffix == ".txt" and tokens[-1:] == [""]:
        # behind the last line
        tokens.pop()
    return check_tokens(tokens, str(path))


def rename_tensors(given: State, where: str) -> dict[str, Tensor]:
    """Return an encoder's tensors under the names that they have here, in float32.

    Raises:
        UserError: it is no AWD-LSTM, or one that reads texts both ways.
    """
    prefixes = [prefix for prefix in PREFIXES if f"{prefix}encoder.weight" in given]
    if not prefixes:
        what = "these are not the tensors of an AWD-LSTM: encoder.weight is missing"
        raise UserError(what, where=where, remedy=_REMEDY)
    if any(name.endswith("_reverse") for name in given):
        what = "an AWD-LSTM that reads texts both ways, which is not known here"
        raise UserError(what, where=where, remedy="give one that reads them forwards")
    prefix = prefixes[0]
    renamed = {"encoder.weight": given[f"{prefix}encoder.weight"].float()}
    layer = 0
    while any(name.startswith(f"{prefix}rnns.{layer}.") for name in given):
        own = f"{prefix}rnns.{layer}."
        of_inputs = _take(given, f"{own}module.bias_ih_l0", where)
        of_states = _take(given, f"{own}module.bias_hh_l0", where)
        renamed[f"rnns.{layer}.inputs.weight"] = _take(given, f"{own}module.weight_ih_l0", where)
        # both are added to the same gates
        renamed[f"rnns.{layer}.inputs.bias"] = of_inputs + of_states
        # what dropout has made of it, `module.weight_hh_l0`, is of the training
        renamed[f"rnns.{layer}.recurrent"] = _take(given, f"{own}weight_hh_l0_raw", where)
        layer += 1
    return renamed


def _take(given: State, name: str, where: str) -> Tensor:
    """Return a tensor in float32. Raise `UserError` where it is not there."""
    tensor = given.get(name)
    if tensor is None:
        what = f"these are not the tensors of an AWD-LSTM: {name} is missing"
        raise UserError(what, where=where, remedy=_REMEDY)
    return tensor.float()


_LSTM = f"{__name__}.{LstmLayer.__qualname__}"
ORDER: Mapping[str, tuple[Step, ...]] = {
    f"{__name__}.{AwdLstm.__qualname__}": (embed_words, "rnns", concat_pool, "classifier")
}
AWD_LSTM = Family(
    names=lambda: (NAME,),
    build=build,
    preparation=prepare_texts,
    fetch=refuse_names,
    read_shape=read_shape,
    block_types={_LSTM: True},
    order=ORDER,
    used_by_steps={embed_words: ("encoder",)},
    calls={_LSTM: call_block},
    places=is_token,
    read_folder=read_folder,
    kept_when_random=(VOCABULARY,),
)
