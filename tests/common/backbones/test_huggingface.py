"""Text networks out of folders: the library's own outputs, and what a stranger's folder may not."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    backbone_state,
    preparation_from_json,
)
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import PADDING, is_token
from fedgraft.common.inputs.tokenizer_file import tensor_of
from tests.huggingface_folders import (
    ARCHITECTURES,
    TINY,
    TINY_IMAGE,
    change_config,
    example_texts,
    library_model,
    write_folder,
)

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture; never changed."""
    base = tmp_path_factory.mktemp("models")
    return {name: write_folder(base / name, name) for name in ARCHITECTURES}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """BERT's folder, to be changed."""
    copy = tmp_path / "model"
    shutil.copytree(folders["bert"], copy)
    return copy


def load(folder: Path, **options: Any) -> Backbone:
    return load_backbone("huggingface", weights=folder, **{"max_length": 16, **options})


def plain_mean(architecture: str, tokens: Tensor) -> Tensor:
    """Return the mean over tokens of what the library's own model gives."""
    here = is_token(tokens)
    padding = 1 if architecture == "roberta" else 0
    ids = torch.where(here > 0, tokens, padding)
    states = library_model(architecture)(input_ids=ids, attention_mask=here).last_hidden_state
    if architecture == "clip":
        ends = here.sum(1).long() - 1
        return states[torch.arange(len(states)), ends]
    return (states * here[..., None]).sum(1) / here.sum(1, keepdim=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_are_the_librarys_own(architecture: str, folders: dict[str, Path]) -> None:
    """A mask that is forgotten, positions counted wrongly, a weight the other way round."""
    backbone = load(folders[architecture])
    tokens = backbone.preprocess(example_texts()).only
    with torch.no_grad():
        ours = backbone.net(tokens)
        theirs = plain_mean(architecture, tokens)
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_travels_without_its_folder(architecture: str, folders: dict[str, Path]) -> None:
    """A node has nothing but tensors and the preparation's JSON."""
    backbone = load(folders[architecture])
    state = {name: tensor.clone() for name, tensor in backbone_state(backbone).items()}
    unbound = preparation_from_json("huggingface", backbone.preprocess.to_json())
    arrived = backbone_from_state("huggingface", state, unbound)
    assert arrived.fingerprint == backbone.fingerprint
    texts = example_texts()
    tokens = arrived.preprocess(texts).only
    assert torch.equal(tokens, backbone.preprocess(texts).only)
    with torch.no_grad():
        assert torch.equal(arrived.net(tokens), backbone.net(tokens))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_stands_behind_the_end_of_a_text_changes_nothing(
    architecture: str, folders: dict[str, Path]
) -> None:
    """A shorter text would be told by how far it was padded."""
    short = load(folders[architecture], max_length=8)
    long = load(folders[architecture], max_length=16)
    with torch.no_grad():
        ours = short.net(short.preprocess(["no fever"]).only)
        padded = long.net(long.preprocess(["no fever"]).only)
    assert int((long.preprocess(["no fever"]).only == PADDING).sum()) > 8
    torch.testing.assert_close(ours, padded, atol=1e-5, rtol=1e-5)


def test_a_file_that_we_wrote_is_the_same_backbone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A run must begin again from what it kept."""
    backbone = load(folders["bert"])
    save_backbone(backbone, tmp_path / "bert.safetensors", provenance={"made": "by hand"})
    again = load_backbone("huggingface", weights=tmp_path / "bert.safetensors")
    assert again.fingerprint == backbone.fingerprint
    assert again.preprocess.to_json() == backbone.preprocess.to_json()


def test_a_random_network_keeps_shape_and_tokenizer(folders: dict[str, Path]) -> None:
    """The baseline that says what the pre-training was worth."""
    backbone = load(folders["bert"])
    random = load(folders["bert"], random=True, seed=3)
    again = load(folders["bert"], random=True, seed=3)
    assert random.fingerprint == again.fingerprint != backbone.fingerprint
    texts = example_texts()
    assert torch.equal(random.preprocess(texts).only, backbone.preprocess(texts).only)


def test_heads_and_former_names_of_published_files_are_understood(
    folder: Path, folders: dict[str, Path]
) -> None:
    """BertForMaskedLM's file has a prefix and a head, and files of 2019 say gamma and beta."""
    state = load_file(folder / "model.safetensors")
    renamed: dict[str, Tensor] = {"cls.predictions.bias": torch.zeros(3)}
    for name, tensor in state.items():
        former = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        former = former.replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[f"bert.{former}"] = tensor
    save_file(renamed, folder / "model.safetensors")
    assert load(folder).fingerprint == load(folders["bert"]).fingerprint


def test_weights_in_several_files_are_one_model(folder: Path, folders: dict[str, Path]) -> None:
    """Large models are published so."""
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert load(folder).fingerprint == load(folders["bert"]).fingerprint


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_the_folders_own_pooling_is_taken(config: Any, pooling: str, folder: Path) -> None:
    """A sentence's vector would be another than the model was trained for."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    backbone = load(folder)
    tokens = backbone.preprocess(example_texts()).only
    with torch.no_grad():
        states = library_model("bert")(
            input_ids=tokens.clamp(min=0), attention_mask=is_token(tokens)
        ).last_hidden_state
        expected = states[:, 0] if pooling == "first" else plain_mean("bert", tokens)
        torch.testing.assert_close(backbone.net(tokens), expected, atol=1e-6, rtol=1e-5)


def test_each_side_of_a_pair_is_read_from_one_folder(tmp_path: Path) -> None:
    """CLIP is published as a pair of encoders: its texts, its images, and its own tokenizer, whose
    regular expressions are CLIP's.
    """
    import transformers

    sizes = {key: TINY["clip"][2][key] for key in TINY["clip"][2] if key != "vocab_size"}
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = ["<|endoftext|>", "<|startoftext|>", ",</w>", *letters]
    words += [f"{one}</w>" for one in letters]
    tokenizer = transformers.CLIPTokenizer({word: at for at, word in enumerate(words)}, [])
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 0},
        vision_config=TINY_IMAGE["clip"][2],
        projection_dim=6,
        attn_implementation="eager",
    )
    pair = transformers.CLIPModel(config).eval()
    pair.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = {"size": 16, "crop_size": 16, "do_center_crop": True, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))

    texts = load(tmp_path, max_length=20)
    said = ["a  fever", "No rash, three weeks"]
    asked = tokenizer(said, padding=True, return_tensors="pt")
    for numbers, row in zip(texts.preprocess(said).only, asked["input_ids"], strict=True):
        own = numbers[numbers != PADDING].tolist()
        # the library pads with the token that ends a text
        assert own == row.tolist()[: len(own)]
        assert own[-1] == 0
    pixels = torch.rand(2, 3, 16, 16)
    images = load_backbone("huggingface-image", weights=tmp_path)
    with torch.no_grad():
        ours = texts.net(texts.preprocess(said).only)
        expected = pair.text_model(**asked).pooler_output
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
        seen = pair.vision_model(pixel_values=pixels).pooler_output
        torch.testing.assert_close(images.net(pixels), seen, atol=1e-6, rtol=1e-5)


# ── hostile and broken folders ────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"attn_implementation": "kernels-community/evil"}, "attn_implementation"),
        ({"_attn_implementation": "some-hub/kernel"}, "attn_implementation"),
        ({"model_type": "clip"}, "text_config is missing"),
        ({"model_type": "clip", "text_config": {"auto_map": {"a": "b"}}}, "auto_map"),
        ({"model_type": "llama"}, "known are bert, roberta, distilbert, gpt2, t5, clip"),
        ({"model_type": None}, "known are bert"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"intermediate_size": -1}, "intermediate_size"),
        ({"hidden_size": "12"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_attention_heads": 5}, "a width of 12 for 5 heads"),
        ({"hidden_act": "__import__"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"vocab_size": 10}, "tokens for a network that knows 10"),
        ({"hidden_size": 32_768, "num_attention_heads": 1, "intermediate_size": 32_768,
          "num_hidden_layers": 96}, "values; at most"),
    ],
)  # fmt: skip
def test_a_hostile_config_is_refused(changes: dict[str, Any], words: str, folder: Path) -> None:
    """Code of a stranger, a hub, or memory without bound, before anything is allocated."""
    with pytest.raises(UserError, match=words):
        load(change_config(folder, **changes))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    """Beside safetensors it is passed over; alone it is refused, with what to do."""
    touched = tmp_path / "touched"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(touched)))
    load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"a pickle runs code[\s\S]*save_pretrained"):
        load(folder)
    assert not touched.exists()


def test_nothing_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that names a hub would tell it who runs what, and could change under our feet."""

    def refuse(*given: Any, **more: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    change_config(folder, _name_or_path="some/model", transformers_version="99.0")
    assert load(folder).features == 12


def test_an_index_cannot_lead_out_of_the_folder(folder: Path) -> None:
    """Another file of the machine would be read as weights."""
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="no safetensors file of this folder"):
        load(folder)


def test_a_folder_that_lacks_something_says_what(folder: Path, tmp_path: Path) -> None:
    """The person who downloaded it must know which file to fetch."""
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load(tmp_path)
    (folder / "tokenizer.json").rename(folder / "kept.json")
    with pytest.raises(UserError, match=r"no tokenizer\.json[\s\S]*AutoTokenizer"):
        load(folder)
    (folder / "kept.json").rename(folder / "tokenizer.json")
    state = load_file(folder / "model.safetensors")
    del state["embeddings.word_embeddings.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"word_embeddings\.weight missing"):
        load(folder)


def test_texts_longer_than_the_network_reads_are_refused(folders: dict[str, Path]) -> None:
    """An index error in the middle of a round, or a silent cut."""
    for architecture, most in {"bert": 20, "roberta": 20, "gpt2": 20}.items():
        assert load(folders[architecture], max_length=most).features == 12
        with pytest.raises(UserError, match=f"at most {most}"):
            load(folders[architecture], max_length=most + 1)
    assert load(folders["t5"], max_length=21).features == 12
    # without a length: as many as there are
    assert load(folders["bert"], max_length=None).preprocess.to_json() == {"max_length": 20}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config", b"{", "cannot be read"),
        ("config", b'{"model_type": "bert"}', "missing"),
        ("config", b'{"model_type": "bert", "auto_map": {}}', "auto_map|missing"),
        ("config", b" " * 20_000, "cannot be read"),
        ("tokenizer", b"{}", "tokenizer"),
        ("config", None, "config is missing"),
        ("tokenizer", None, "tokenizer is missing"),
    ],
)
def test_a_server_that_sends_another_description_is_refused(
    name: str, content: bytes | None, words: str, folders: dict[str, Path]
) -> None:
    """A node builds what the tensors say; they come from a server."""
    backbone = load(folders["bert"])
    state = dict(backbone_state(backbone))
    del state[name]
    if content is not None:
        state[name] = tensor_of(content)
    with pytest.raises(UserError, match=words):
        backbone_from_state("huggingface", state, backbone.preprocess)


def test_a_name_of_a_hub_is_not_fetched() -> None:
    """`weights: DEFAULT` means something to torchvision only."""
    with pytest.raises(UserError, match="nothing is fetched from a hub"):
        load_backbone("huggingface", weights="DEFAULT")
    with pytest.raises(UserError, match="is a model's folder, and none is named"):
        load_backbone("huggingface")


def test_nothing_imports_the_library_before_it_is_needed() -> None:
    """`import fedgraft` and every command would take seconds longer."""
    code = (
        "import sys, fedgraft.common.backbones.huggingface, fedgraft.common.inputs.text;"
        "from fedgraft.common.backbones.backbone_files import load_backbone;"
        "load_backbone('cifar-resnet8');"
        "sys.exit(str({'transformers', 'tokenizers'} & set(sys.modules) or 0))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.stderr.strip() == "0"


def test_a_missing_package_names_the_line_to_type(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ModuleNotFoundError` tells a hospital nothing."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'fedgraft\[huggingface\]'"):
        load(folders["bert"])
