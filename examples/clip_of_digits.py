"""A small pair of encoders that learnt public captions, and hospitals' images of what no caption
named: for docs/zero-shots.md.

    python examples/clip_of_digits.py FOLDER

It writes FOLDER/clip, a folder as Hugging Face's library writes a CLIP, and FOLDER/hospitals.npz.
Handwritten digits (scikit-learn's), each in one of five colours. The pair sees forty of the fifty
combinations of digit and colour, with captions such as "a photo of a red three."; the hospitals
have the other ten, of other writers, and noisier. Half a minute on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (230, 60, 60),
    "green": (60, 200, 60),
    "blue": (80, 90, 250),
    "yellow": (230, 220, 60),
    "pink": (240, 90, 220),
}
NAMES = tuple(COLOURS)
TEMPLATES = ("a photo of a {}.", "a {}", "a drawing of a {}.", "one {} on black", "a small {}")
# the first so many of scikit-learn's 1,797 are public
PUBLIC = 900
SIDE = 16
STEPS = 600
# of a pixel, of 255
NOISE = 12.0
HOSPITAL_NOISE = 60.0
# the combination of digit d that no caption named has colour d mod 5
UNSEEN = [(digit, digit % len(NAMES)) for digit in range(10)]


def paint(
    digits: np.ndarray, colours: np.ndarray, draw: np.random.Generator, noise: float
) -> np.ndarray:
    """Return digits `(n, 8, 8)` of values 0 to 16 as images `(n, 3, 16, 16)`, each in its colour,
    moved by up to a pixel, with noise of this deviation.
    """
    palette = np.array(list(COLOURS.values()), np.float32)
    ink = np.kron(digits / 16, np.ones((2, 2)))
    for number, (down, right) in enumerate(draw.integers(-1, 2, (len(ink), 2))):
        ink[number] = np.roll(ink[number], (down, right), axis=(0, 1))
    images = ink[:, None] * palette[colours][:, :, None, None]
    images = images + draw.normal(0, noise, images.shape)
    return images.clip(0, 255).astype(np.uint8)


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────
def make_tokenizer() -> Tokenizer:
    """Return a tokenizer of whole words, with CLIP's beginning and end around a text."""
    words = " ".join((*TEMPLATES, *DIGITS, *NAMES)).replace("{}", "").replace(".", " .").split()
    names = ["<|unknown|>", *sorted(set(words)), "<|startoftext|>", "<|endoftext|>"]
    numbers = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=names[0]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = names[-2:]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, numbers[start]), (end, numbers[end])]
    )
    return tokenizer


def number_texts(tokenizer: Tokenizer, texts: list[str], end: int) -> Tensor:
    """Return the tokens of texts `(n, length)`, short ones filled up with their end."""
    rows = [torch.tensor(cut.ids) for cut in tokenizer.encode_batch(texts)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end)


# ── the pair ──────────────────────────────────────────────────────────────────────────────────────
def make_pair(tokens: int) -> CLIPModel:
    """Return a pair of encoders that learnt nothing, of 179,000 values."""
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "projection_dim": 32,
    }
    texts = {
        **sizes,
        "num_hidden_layers": 2,
        "vocab_size": tokens,
        "max_position_embeddings": 16,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }
    images = {**sizes, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=texts, vision_config=images, projection_dim=32))


def train_pair(
    pair: CLIPModel, tokenizer: Tokenizer, digits: np.ndarray, labels: np.ndarray
) -> None:
    """Bring each image near its caption, and away from the others of a step (Radford et al. 2021,
    figure 3).
    """
    draw = np.random.default_rng(0)
    seen = [(d, c) for d in range(10) for c in range(len(NAMES)) if (d, c) not in UNSEEN]
    rows_of = [np.flatnonzero(labels == digit) for digit in range(10)]
    optimizer = torch.optim.AdamW(pair.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    colours = np.array([colour for _, colour in seen])
    own = torch.arange(len(seen))
    # the last of its words
    end = tokenizer.get_vocab_size() - 1
    for _ in range(STEPS):
        rows = np.array([draw.choice(rows_of[digit]) for digit, _ in seen])
        images = paint(digits[rows], colours, draw, NOISE)
        captions = []
        for digit, colour in seen:
            template = str(draw.choice(TEMPLATES))
            captions.append(template.replace("{}", f"{NAMES[colour]} {DIGITS[digit]}"))
        output = pair(
            input_ids=number_texts(tokenizer, captions, end),
            pixel_values=torch.from_numpy(images) / 127.5 - 1,
        )
        logits = output.logits_per_image
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def write_pair(pair: CLIPModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder of a pair: configuration, tensors, tokenizer, how images are prepared."""
    pair.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    processor = {
        "size": {"shortest_edge": SIDE},
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def main(folder: Path) -> None:
    """Write the pair and the hospitals' images."""
    # so small that threads would wait for one another
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data: Any = load_digits()
    digits = data.images.astype(np.float32)
    tokenizer = make_tokenizer()
    pair = make_pair(tokenizer.get_vocab_size())
    train_pair(pair, tokenizer, digits[:PUBLIC], data.target[:PUBLIC])
    write_pair(pair.eval(), tokenizer, folder / "clip")

    labels = data.target[PUBLIC:]
    colours = np.array([UNSEEN[label][1] for label in labels])
    images = paint(digits[PUBLIC:], colours, np.random.default_rng(1), HOSPITAL_NOISE)
    np.savez(folder / "hospitals.npz", images=images, labels=labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
