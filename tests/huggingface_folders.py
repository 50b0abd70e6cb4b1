"""Model folders of tiny seeded networks, as Hugging Face's library writes them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.tokenizers_for_tests import count_words, small_tokenizer

WORDS = count_words()
# by architecture: the library's model and configuration, and sizes
TINY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": (
        "BertModel",
        "BertConfig",
        {
            "vocab_size": WORDS,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 20,
        },
    ),
    "roberta": (
        "RobertaModel",
        "RobertaConfig",
        {
            "vocab_size": WORDS,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 22,
            "type_vocab_size": 1,
            "pad_token_id": 1,
        },
    ),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": WORDS,
            "dim": 12,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 16,
            "max_position_embeddings": 20,
        },
    ),
    "gpt2": (
        "GPT2Model",
        "GPT2Config",
        {
            "vocab_size": WORDS,
            "n_embd": 12,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 20,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
    "t5": (
        "T5EncoderModel",
        "T5Config",
        {
            "vocab_size": WORDS,
            "d_model": 12,
            "d_kv": 6,
            "d_ff": 16,
            "num_layers": 2,
            "num_heads": 2,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
        },
    ),
    "clip": (
        "CLIPTextModel",
        "CLIPTextConfig",
        {
            "vocab_size": WORDS,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 20,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
}
ARCHITECTURES = tuple(TINY)
TINY_IMAGE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": (
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 16,
            "patch_size": 4,
        },
    ),
    "dinov2": (
        "Dinov2Model",
        "Dinov2Config",
        {
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
            "image_size": 24,
            "patch_size": 4,
        },
    ),
    "clip": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        {
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 16,
            "patch_size": 4,
        },
    ),
}
IMAGE_ARCHITECTURES = tuple(TINY_IMAGE)
# the library's own classifiers
CLASSIFIERS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
}
IMAGE_CLASSIFIERS = {
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
}
TINY_AUDIO: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
}
AUDIO_KINDS: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True},
}


def library_model(architecture: str, seed: int = 0, *, images: bool = False) -> Any:
    """Return the library's own model with lively values: at first most of a network is zeros."""
    import transformers

    known = TINY_IMAGE if images else TINY
    model, configuration, sizes = known[architecture]
    config = getattr(transformers, configuration)(**sizes, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = getattr(transformers, model)(config).eval()
        for parameter in net.parameters():
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.2)
    return net


def library_classifier(architecture: str, seed: int = 0, *, images: bool = False) -> Any:
    """Return the library's own classifier of two classes, with lively values."""
    import transformers

    known = TINY_IMAGE if images else TINY
    _, configuration, sizes = known[architecture]
    name = IMAGE_CLASSIFIERS[architecture] if images else CLASSIFIERS[architecture]
    options = {"attn_implementation": "eager", "num_labels": 2}
    if not images:
        options["pad_token_id"] = sizes.get("pad_token_id", 0)
    config = getattr(transformers, configuration)(**{**sizes, **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = getattr(transformers, name)(config).eval()
        for parameter in net.parameters():
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.2)
    return net


def write_classifier(folder: Path, architecture: str, seed: int = 0) -> Path:
    """Write the folder of a tiny classifier of texts with its tokenizer."""
    library_classifier(architecture, seed).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(small_tokenizer())
    return folder


def write_image_classifier(folder: Path, architecture: str, seed: int = 0) -> Path:
    """Write the folder of a tiny classifier of images, with how its images are prepared."""
    write_image_folder(folder, architecture, seed)
    library_classifier(architecture, seed, images=True).save_pretrained(folder)
    return folder


def write_folder(folder: Path, architecture: str = "bert", seed: int = 0) -> Path:
    """Write the folder of a tiny model with its tokenizer."""
    library_model(architecture, seed).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(small_tokenizer())
    return folder


def write_image_folder(folder: Path, architecture: str = "vit", seed: int = 0) -> Path:
    """Write the folder of a tiny vision model, with how its images are prepared."""
    library_model(architecture, seed, images=True).save_pretrained(folder)
    processor = {
        "size": {"shortest_edge": 20},
        "do_center_crop": True,
        "crop_size": {"height": 16, "width": 16},
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def pair_model(seed: int = 0) -> Any:
    """Return the library's own CLIP, both encoders, with lively values."""
    import transformers

    parts = {"text_config": TINY["clip"][2], "vision_config": TINY_IMAGE["clip"][2]}
    options: dict[str, Any] = {**parts, "projection_dim": 10, "attn_implementation": "eager"}
    config = transformers.CLIPConfig(**options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = transformers.CLIPModel(config).eval()
        for name, parameter in net.named_parameters():
            if name != "logit_scale":
                parameter.data.add_(torch.randn(parameter.shape), alpha=0.2)
    return net


def write_pair_folder(folder: Path, seed: int = 0) -> Path:
    """Write the folder of a tiny pair, with its tokenizer and how its images are prepared."""
    write_image_folder(folder, "clip", seed)
    pair_model(seed).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(small_tokenizer())
    return folder


def audio_model(kind: str = "base") -> Any:
    """Return the library's own wav2vec 2 with lively values."""
    import transformers

    sizes = {**TINY_AUDIO, **AUDIO_KINDS[kind], "attn_implementation": "eager"}
    config = transformers.Wav2Vec2Config(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.Wav2Vec2Model(config).eval()
        for parameter in net.parameters():
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.2)
    return net


def write_audio_folder(folder: Path, kind: str = "base", rate: int = 1000) -> Path:
    """Write the folder of a tiny wav2vec 2, with how its audio is prepared."""
    audio_model(kind).save_pretrained(folder)
    processor = {"sampling_rate": rate, "do_normalize": True, "feature_size": 1}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def change_config(folder: Path, **changes: Any) -> Path:
    """Change keys of a folder's `config.json`; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(config))
    return folder


@cache
def example_texts() -> list[str]:
    """Return texts of several lengths."""
    return [
        "fever",
        "Cough, three weeks, no known rash.",
        "a rash and a rash and nothing found and a cough and fever and pain",
    ]
