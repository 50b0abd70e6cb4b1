"""The first head of a plan that begins with texts: what its prompts say of its classes, in the
space of a pair of encoders.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.wire.layout import BadUpdate, check_believable


def with_text_head(backbone: Backbone, plan: Agreement, source: str | Path | None) -> Backbone:
    """Return a backbone with the head that the plan's prompts give.

    Args:
        source: of the backbone's weights: a pair's folder.

    Raises:
        UserError: there is no encoder of texts, a text that it cannot read, or a head that no node
            would take.
    """
    weigh_texts = family_of(backbone.name).weigh_texts
    folder = Path(source or "")
    if weigh_texts is None or source is None or not folder.is_dir():
        what = f"{source}, and texts are read by the encoder that lies in a pair's folder"
        remedy = "name the folder that the model was downloaded to"
        raise UserError(what, where="backbone.weights", remedy=remedy)
    weights = weigh_texts(folder, plan.task.texts)
    if weights.shape[1] != backbone.features:
        what = f"texts of {weights.shape[1]} values, and images of {backbone.features}"
        raise UserError(what, where=str(folder), remedy="give the folder of one pair")
    try:
        check_believable(weights)
    except BadUpdate as error:
        what = f"the head that the texts give has {error}, and no node takes it"
        raise UserError(what, where=str(folder), remedy="give another pair") from None
    return replace(backbone, text_head=weights)
