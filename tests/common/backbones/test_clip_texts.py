"""Texts as a head: the library's own pair of encoders answers the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgraft.common.backbones.backbone import backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.clip_texts import weigh_texts
from fedgraft.common.errors import UserError
from tests.huggingface_folders import (
    change_config,
    pair_model,
    write_folder,
    write_image_folder,
    write_pair_folder,
)
from tests.tokenizers_for_tests import small_tokenizer

pytest.importorskip("transformers")
IMAGES = torch.randint(0, 256, (5, 3, 30, 24), generator=torch.Generator().manual_seed(0))
IMAGES = IMAGES.to(torch.uint8)
CLASSES = ("a photo of a cough.", "a rash and no fever", "nothing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair's folder; never written."""
    return write_pair_folder(tmp_path_factory.mktemp("pair"))


def number_tokens(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token numbers and mask as the library takes them, padded by 0."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(small_tokenizer().decode())
    tokenizer.enable_padding()
    cut = tokenizer.encode_batch(list(texts))
    numbers = torch.tensor([row.ids for row in cut])
    return numbers, torch.tensor([row.attention_mask for row in cut])


@torch.no_grad()
def test_answers_are_the_pairs_own(folder: Path) -> None:
    """Another pooling, scale or length than the pair was trained with would answer noise."""
    images = load_backbone("huggingface-image", weights=folder, pool="joint")
    prepared = images.preprocess(IMAGES).only
    weights = weigh_texts(folder, [(text,) for text in CLASSES])
    ours = images.net(prepared) @ weights.T

    numbers, mask = number_tokens(CLASSES)
    library = pair_model()
    theirs = library(input_ids=numbers, attention_mask=mask, pixel_values=prepared)
    assert images.features == 10
    assert weights.shape == (3, 10)
    torch.testing.assert_close(ours, theirs.logits_per_image, atol=1e-5, rtol=1e-5)
    shares = ours.softmax(1)
    assert shares.std() > 0.01
    torch.testing.assert_close(shares, theirs.logits_per_image.softmax(1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_several_texts_of_a_class_are_averaged_as_directions(folder: Path) -> None:
    """A mean of lengths would let one text outvote the others (Radford et al. 2021, §3.1.4)."""
    (weights,) = weigh_texts(folder, [CLASSES])
    library = pair_model()
    numbers, mask = number_tokens(CLASSES)
    texts = library.get_text_features(input_ids=numbers, attention_mask=mask).pooler_output
    total = torch.zeros(10)
    for text in texts:
        total += text / text.norm()
    expected = library.logit_scale.exp() * total / total.norm()
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)


def test_the_joint_features_have_length_one_and_travel(folder: Path) -> None:
    """A node has nothing but tensors, and must come to the same features."""
    images = load_backbone("huggingface-image", weights=folder, pool="joint")
    state = {name: tensor.clone() for name, tensor in backbone_state(images).items()}
    arrived = backbone_from_state("huggingface-image", state, images.preprocess)
    features = arrived.net(images.preprocess(IMAGES).only)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    assert arrived.fingerprint == images.fingerprint
    assert not any(name.startswith("text") for name in state)


def test_a_folder_that_is_opened_as_before_has_its_old_description(folder: Path) -> None:
    """A key more in the description is another fingerprint, and hospitals approved the old one."""
    plain = load_backbone("huggingface-image", weights=folder)
    described = json.loads(bytes(backbone_state(plain)["config"].tolist()))
    assert "projection_dim" not in described
    assert plain.features == 12


def test_half_a_pair_is_refused_in_words(tmp_path: Path) -> None:
    """Tensors that are missing would be told by their names alone, or not at all."""
    images = write_image_folder(tmp_path / "images", "clip")
    with pytest.raises(UserError, match=r"joint, and visual_projection\.weight is missing"):
        load_backbone("huggingface-image", weights=images, pool="joint")
    with pytest.raises(UserError, match=r"no pair of encoders: text_projection\.weight"):
        weigh_texts(images, [("a cough",)])
    other = write_image_folder(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match="joint, and of a vit first"):
        load_backbone("huggingface-image", weights=other, pool="joint")
    texts = write_folder(tmp_path / "texts", "clip")
    with pytest.raises(UserError, match="joint, and of a clip mean, first, last"):
        load_backbone("huggingface", weights=texts, pool="joint")


def test_a_text_that_is_cut_is_refused(folder: Path) -> None:
    """Half of a description would be taken for the whole, and nobody told."""
    with pytest.raises(UserError, match=r"is 42 tokens, and at most 20 are read") as raised:
        weigh_texts(folder, [("a cough",), ("no fever " * 20,)])
    assert raised.value.where == "task.prompts"


def test_a_text_is_read_where_the_pair_reads_it(tmp_path: Path) -> None:
    """A tokenizer that ends texts in another token would be read at a place without meaning."""
    folder = write_pair_folder(tmp_path / "pair")
    other = json.loads((folder / "config.json").read_text())["text_config"] | {"eos_token_id": 5}
    change_config(folder, text_config=other)
    with pytest.raises(UserError, match="does not end in the token"):
        weigh_texts(folder, [("a cough",)])
    # configurations before 2023: the token with the largest number
    change_config(folder, text_config=other | {"eos_token_id": 2})
    with pytest.raises(UserError, match="does not end in the token"):
        weigh_texts(folder, [("a cough",)])
