"""Hugging Face's library, imported only where a plan uses it: its models as modules, never its
loaders. Nothing here opens a file or a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fedgraft.common.backbones.huggingface_shapes import HuggingFaceShape
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.tokenizer_file import INSTALL

# how attention is computed: the same bits in every place of a batch, and `vmap` knows its parts
ATTENTION = "eager"


def import_library() -> Any:
    """Return the package transformers. Raise `UserError` where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        what = "this backbone is built by the package transformers, which is not installed"
        raise UserError(what, where="backbone.name", remedy=INSTALL) from error
    return transformers


def build_library_model(
    model: str, configuration: str, shape: HuggingFaceShape, options: Mapping[str, Any]
) -> nn.Module:
    """Return a model of the library, with its own initialisation.

    Args:
        model, configuration: names of its classes.
        options: of the model's class.
    """
    library = import_library()
    config = getattr(library, configuration)(**shape.for_library(), attn_implementation=ATTENTION)
    return getattr(library, model)(config, **options)


def drop_tables(net: nn.Module) -> None:
    """Take away tables of positions that do not travel: positions are handed in."""
    for module in net.modules():
        for name in list(module._non_persistent_buffers_set):
            delattr(module, name)
