"""What works with what: every family of networks × every method, tried on tiny networks.

    python -m tests.matrix        # writes docs/matrix.md

A cell is what `try_cell` found, in a word or a sentence; `tests/test_matrix.py` holds the page to
it.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.common.backbones import family_line
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import (
    DepthChoice,
    GraftedModel,
    graft,
    load_adapter,
    save_adapter,
)
from fedgraft.common.tasks.classification import cross_entropies
from tests.tiny_networks import TINY_NETWORKS, Tiny

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
ONE_ROUND = "one round"
METHODS = (ONE_ROUND, "head", "lora", "bottleneck", "bias", "scale-shift")
PROPERTIES = ("nothing at first", "gradients", "kept", "merged", "reloaded", "opens", "PEFT")
WORKS = "✓"
NONE = "–"
CLASSES = 3
HEAD = """# What works with what

For whoever combines a network with a method. Each cell is a test on a tiny network of random
values (`tests/test_matrix.py`), and this page is written by it: `python -m tests.matrix`.

✓ stands for all of these, where they apply:

- **nothing at first**: with fresh adapters the outputs are the backbone's own;
- **gradients**: those of single examples, which differential privacy clips, equal a loop over them
  (of one round: sums of features of norm 1, no gradients);
- **kept**: activations of the frozen part, kept on disk, give the same bits as the network
  (adapters on the last block);
- **merged** into the network, in float64, the outputs are the same to 1e-9 (a bottleneck stays a
  module behind its block);
- **reloaded** from the run's folder, the outputs are the same bits;
- **opens**: from tensors and JSON alone, as a node and `fedgraft predict` open it, the same bits;
- **PEFT** (LoRA): Hugging Face's `peft` opens the folder on the plain network, the same to 1e-5.

One round reads the mean of every block's output; the number is how many stages it has.

"""


@dataclass(frozen=True)
class Opened:
    """A tiny network, and two of its prepared records."""

    backbone: Backbone
    example: Tensor
    probes: Tensor


@cache
def open_network(label: str) -> Opened:
    """Return a tiny network of a family, with features of order 1."""
    tiny = TINY_NETWORKS[label]
    folder = Path(tempfile.mkdtemp(prefix="fedgraft-tiny-"))
    backbone = _enliven(tiny.open(folder), tiny)
    material = family_line(backbone.name).material
    probes = draw_probes(material, backbone.preprocess, Batch({"x": tiny.example}), 2).only
    return Opened(backbone, tiny.example, probes)


def _enliven(backbone: Backbone, tiny: Tiny) -> Backbone:
    """Return a backbone whose norms have the statistics of some data: in eval mode those of random
    networks are of none, and features near 0 agree with anything.
    """
    norms = nn.modules.batchnorm._BatchNorm
    if not any(isinstance(module, norms) for module in backbone.net.modules()):
        return backbone
    net = copy.deepcopy(backbone.net)
    for module in net.modules():
        if isinstance(module, norms):
            module.momentum = 1.0
            module.train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        net(torch.randn((8, *tiny.example.shape[1:]), generator=generator))
    return backbone_from_state(backbone.name, net.eval().state_dict(), backbone.preprocess)


# ── one cell ──────────────────────────────────────────────────────────────────────────────────────
def try_cell(label: str, method: str) -> dict[str, str]:
    """Return what each property of a family and a method is: ✓, – (none to have), or why not."""
    opened = open_network(label)
    if method == ONE_ROUND:
        return _try_one_round(opened)
    try:
        make_model(opened, method)
    except UserError as error:
        return {PROPERTIES[0]: error.what}
    found: dict[str, str] = {}
    for name, attempt in ATTEMPTS.items():
        found[name] = attempt(opened, method)
    return found


def make_model(
    opened: Opened, method: str, *, moved: bool = False, targets: str = "auto"
) -> GraftedModel:
    if method == "head":
        targets = "auto"
    options = {"rank": 2, "width": 3, "targets": targets}
    model = graft(opened.backbone, method=method, classes=CLASSES, seed=1, **options)
    if moved:
        generator = torch.Generator().manual_seed(2)
        state: dict[str, Tensor] = {}
        for name, tensor in model.adapter_state().items():
            state[name] = tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        model.load_adapter_state(state)
    return model


def _as_said(condition: bool) -> str:
    return WORKS if condition else "wrong"


@torch.no_grad()
def _nothing_at_first(opened: Opened, method: str) -> str:
    model = make_model(opened, method)
    head = model.net.get_submodule(model.head_name)
    bare = head(opened.backbone.net(opened.probes))
    moved = make_model(opened, method, moved=True)(opened.probes)
    is_alive = float((moved - bare).abs().max()) > 1e-4
    return _as_said(is_alive and torch.allclose(model(opened.probes), bare, atol=1e-6, rtol=1e-6))


def _gradients(opened: Opened, method: str) -> str:
    try:
        check_gradients(make_model(opened, method), "hooks", opened.probes, cross_entropies)
    except Refused as refused:
        return refused.reason
    return WORKS


@torch.no_grad()
def _kept(opened: Opened, method: str) -> str:
    try:
        model = make_model(opened, method, moved=True, targets="last-block")
    except UserError as error:
        return error.what
    prefix = frozen_prefix(model)
    if prefix is None:
        return NONE
    same = prefix.tail(prefix(opened.probes))
    return _as_said(torch.equal(same, model(opened.probes)))


@torch.no_grad()
def _merged(opened: Opened, method: str) -> str:
    model = make_model(opened, method, moved=True).double()
    probes = opened.probes
    if probes.is_floating_point():
        probes = probes.double()
    return _as_said(torch.allclose(model.merge()(probes), model(probes), atol=1e-9, rtol=1e-9))


@torch.no_grad()
def _reloaded(opened: Opened, method: str) -> str:
    model = make_model(opened, method, moved=True)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, Path(folder))
        again = make_model(opened, method)
        load_adapter(again, Path(folder))
    return _as_said(torch.equal(again(opened.probes), model(opened.probes)))


@torch.no_grad()
def _opens(opened: Opened, method: str) -> str:
    backbone = opened.backbone
    state = {name: tensor.clone() for name, tensor in backbone_state(backbone).items()}
    arrived = backbone_from_state(backbone.name, state, backbone.preprocess)
    there = Opened(arrived, opened.example, opened.probes)
    model = make_model(opened, method, moved=True)
    same = torch.equal(make_model(there, method, moved=True)(opened.probes), model(opened.probes))
    return _as_said(same and arrived.fingerprint == backbone.fingerprint)


@torch.no_grad()
def _peft(opened: Opened, method: str) -> str:
    if method != "lora":
        return NONE
    from peft import PeftModel

    model = make_model(opened, method, moved=True)
    plain = copy.deepcopy(opened.backbone.net)
    plain.set_submodule(model.head_name, nn.Linear(opened.backbone.features, CLASSES))
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, Path(folder))
        theirs = PeftModel.from_pretrained(plain, folder).eval().get_base_model()
    same = torch.allclose(theirs(opened.probes), model(opened.probes), atol=1e-5, rtol=1e-5)
    return _as_said(same)


def _try_one_round(opened: Opened) -> dict[str, str]:
    """Return whether features of all depths can be had, whose last are what enters the
    classifier, and from how many stages.
    """
    backbone = opened.backbone
    choice = DepthChoice("all", "mean", opened.example)
    model = graft(backbone, method="head", classes=CLASSES, depths=choice)
    assert model.depths is not None
    with torch.no_grad():
        features = model.depths(opened.probes)
        last = features[:, -backbone.features :]
        same = torch.allclose(last, backbone.net(opened.probes), atol=1e-5, rtol=1e-5)
    found = {"nothing at first": _as_said(same)}
    found["stages"] = str(len(model.depths.stages))
    return found


ATTEMPTS: Mapping[str, Callable[[Opened, str], str]] = {
    "nothing at first": _nothing_at_first,
    "gradients": _gradients,
    "kept": _kept,
    "merged": _merged,
    "reloaded": _reloaded,
    "opens": _opens,
    "PEFT": _peft,
}


# ── the page ──────────────────────────────────────────────────────────────────────────────────────
def write_cell(found: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a cell of the page, and what is to be said of it below."""
    notes: list[str] = []
    for name, said in found.items():
        if name != "stages" and said not in (WORKS, NONE):
            notes.append(f"{name}: {said}")
    if "stages" in found and not notes:
        return f"{WORKS} {found['stages']}", notes
    if not notes:
        return WORKS, notes
    return f"{len(notes)} not", notes


def list_lines() -> Iterator[str]:
    """Yield the lines of the table, and the sentences below it."""
    yield f"| network | {' | '.join(METHODS)} | kept |"
    yield f"|---|{'---|' * (len(METHODS) + 1)}"
    notes: dict[str, list[str]] = {}
    for label, tiny in TINY_NETWORKS.items():
        cells: list[str] = []
        kept = NONE
        for method in METHODS:
            found = try_cell(label, method)
            cell, said = write_cell(found)
            cells.append(cell)
            if found.get("kept") == WORKS:
                kept = WORKS
            for note in said:
                notes.setdefault(f"{tiny.words}, {note}", []).append(method)
        yield f"| {tiny.words} | {' | '.join(cells)} | {kept} |"
    if notes:
        yield ""
    for note, methods in notes.items():
        yield f"- {', '.join(methods)}: {note}"


def write_page() -> str:
    """Return the page."""
    return HEAD + "\n".join(list_lines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(write_page())
    print(PAGE)
