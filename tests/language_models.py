"""Folders of tiny GPT-2s with a tokenizer of bytes, and sites whose texts have answers."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import torch

ORGANS = ("lungs", "skin", "heart")
SAID = {
    "lungs": "a cough for three weeks",
    "skin": "a rash on both hands",
    "heart": "pain behind the chest",
}


def write_site(path: Path, seed: int, count: int = 24) -> None:
    """Write questions and answers, each of one of three organs; a patient has two."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "patient"])
        for number in range(count):
            organ = draw.choice(ORGANS)
            # no two alike: records with the same text are all on one side of a split
            answer = f"{SAID[organ]}, seen {100 * seed + number} times"
            writer.writerow([f"What of the {organ}?", answer, f"{path.stem}-{number // 2}"])


def train_small_tokenizer(tokens: int = 300) -> Any:
    """A tokenizer of bytes with the token that ends a text."""
    from fedgraft.common.plan.language_section import LanguageSection
    from fedgraft.simulations.language_pretraining import train_tokenizer

    texts = [f"What of the {organ}?\n{SAID[organ]}, seen 3 times" for organ in ORGANS]
    return train_tokenizer(texts, LanguageSection(tokens=tokens))


def write_gpt2(folder: Path, seed: int = 0, length: int = 48) -> Path:
    """Write a GPT-2 of two narrow blocks as the library does, with lively values."""
    import transformers

    tokenizer = train_small_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "n_positions": length,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = transformers.GPT2Config(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.GPT2LMHeadModel(config).eval()
        for parameter in network.parameters():
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    network.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
