"""A model's folder as Hugging Face's libraries write it, read as data: JSON, a tokenizer, and
tensors in safetensors. Nothing in it is run, nothing is fetched, and no other file is opened.

    config.json, tokenizer.json          what it is, and how it cuts texts
    model.safetensors                    or model.safetensors.index.json and the files that it names
    modules.json, 1_Pooling/config.json  how tokens become one vector, where sentence-transformers
                                         wrote it
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgraft.common.backbones.family import Pooling
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors
from fedgraft.common.inputs.tokenizer_file import LARGEST_FILE

CONFIG = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
POOLING = Path("1_Pooling") / "config.json"
# bytes; an index names every tensor
LARGEST_JSON = 16_000_000
MOST_FILES = 1000
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".ot")
# how sentence-transformers calls what is known here
POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "mean": "mean",
    "pooling_mode_cls_token": "first",
    "cls": "first",
}
_SHARD = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raise `UserError` where there is none, or it is too large."""
    remedy = "give the folder of a model as it was downloaded: config.json, tokenizer.json, tensors"
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON:,} bytes")
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), remedy=remedy) from None
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read as JSON ({type(error).__name__})"
        raise UserError(what, where=str(path), remedy=remedy) from error
    if not isinstance(read, dict):
        raise UserError("holds no JSON object", where=str(path), remedy=remedy)
    return read


def read_tokenizer_file(folder: Path) -> bytes:
    """Return the bytes of the folder's `tokenizer.json`. Raise `UserError` where there is none."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        what = "no tokenizer.json: the older files (vocab.txt, merges.txt) are not read"
        remedy = (
            f'write it: python -c "from transformers import AutoTokenizer as T;'
            f" T.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
        raise UserError(what, where=str(folder), remedy=remedy)
    if path.stat().st_size > LARGEST_FILE:
        what = f"more than {LARGEST_FILE:,} bytes"
        raise UserError(what, where=str(path), remedy="give another model")
    return path.read_bytes()


def read_pooling(folder: Path) -> Pooling | None:
    """Return how the folder's model makes one vector of its tokens; None: it does not say.

    Raises:
        UserError: it pools in a way that is not known here.
    """
    path = folder / POOLING
    if not path.is_file():
        return None
    config = read_json(path)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [config["pooling_mode"]]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        what = f"pools by {', '.join(map(str, chosen))[:100] or 'nothing'}"
        remedy = "known are the mean of the tokens and the first token; give another model"
        raise UserError(what, where=str(path), remedy=remedy)
    return POOLINGS[chosen[0]]


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder. Raise `UserError` where they are in no safetensors file."""
    if (folder / TENSORS).is_file():
        return read_tensors(folder / TENSORS)
    if not (folder / INDEX).is_file():
        raise _no_tensors(folder)
    tensors: dict[str, Tensor] = {}
    for name in _list_shards(folder / INDEX):
        tensors |= read_tensors(folder / name)
    return tensors


def _list_shards(index: Path) -> list[str]:
    """Return the files that an index names, each inside its folder."""
    named = read_json(index).get("weight_map")
    remedy = "give the folder of a published model as it was downloaded"
    if not isinstance(named, dict) or not named:
        raise UserError("names no files", where=str(index), remedy=remedy)
    names = sorted(set(map(str, named.values())))
    for name in names:
        if not _SHARD.fullmatch(name):
            what = f"names {name[:80]!r}, which is no safetensors file of this folder; refused"
            raise UserError(what, where=str(index), remedy=remedy)
    if len(names) > MOST_FILES:
        raise UserError(f"names {len(names)} files", where=str(index), remedy=remedy)
    return names


def _no_tensors(folder: Path) -> UserError:
    what = f"no {TENSORS}"
    remedy = "download it, too"
    if any(path.suffix in PICKLES for path in folder.iterdir()):
        what += ", and other files of weights are never opened: a pickle runs code"
        remedy = (
            "take the model's safetensors file; or convert it where you trust it:"
            " AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    return UserError(what, where=str(folder), remedy=remedy)
