"""Models cut behind their frozen prefix, and the files in which what comes out there is kept.

One file for each (backbone, place of the cut, preparation, data, precision). That the places within
a batch are equal is tried out for each network, and one for which they are not gets no cut.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch

from fedgraft.client.data.examples import Examples
from fedgraft.client.data.split import Split
from fedgraft.client.store.activation_cache import SUFFIX, ActivationCache
from fedgraft.client.store.activation_file import (
    ActivationFile,
    ActivationForm,
    file_size,
    make_file,
    open_file,
)
from fedgraft.client.store.activations import BLOCK, Activations
from fedgraft.common.backbones import family_line
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.frozen_prefix import FrozenPrefix, frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.model.instructions import name_instructions

log = logging.getLogger("fedgraft.client")


@dataclass(frozen=True)
class Cut:
    """What names the activations of one backbone.

    Attributes:
        backbone: its name.
        fingerprint: of its values.
        dtype: "float32", or "float16" for half the bytes and rounded activations.
    """

    backbone: str
    fingerprint: str
    dtype: str


class CutModels:
    """What a process has cut, tried and opened.

    cuts = CutModels()
    tail, activations = cuts.behind_prefix(model, split, cut, cache)
    """

    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._files: dict[Path, ActivationFile] = {}
        # by the name of a file, with or without one
        self._forms: dict[str, ActivationForm | None] = {}
        self._too_large: set[str] = set()
        self._prefixes: weakref.WeakKeyDictionary[GraftedModel, FrozenPrefix | None] = (
            weakref.WeakKeyDictionary()
        )

    def behind_prefix(
        self, model: GraftedModel, examples: Examples, cut: Cut, cache: ActivationCache | None
    ) -> tuple[GraftedModel, Examples]:
        """Return a model's part behind its frozen prefix, and the examples as they enter there.

        Both as given where there is no cut.

        Args:
            cache: where to keep them; None: computed each time, with the same result.
        """
        prefix = self._prefix_of(model)
        if prefix is None or len(examples) == 0:
            return model, examples
        uncut: list[Examples] = []

        def enter(part: Examples) -> Examples:
            entering = None
            if isinstance(part, Split):
                with self._opening:
                    entering = self._enter(model, prefix, part, cut, cache)
            if entering is None:
                uncut.append(part)
                return part
            return entering

        entering = examples.through(enter)
        if uncut:
            return model, examples
        return prefix.tail, entering

    def _prefix_of(self, model: GraftedModel) -> FrozenPrefix | None:
        if model not in self._prefixes:
            prefix = frozen_prefix(model)
            self._prefixes[model] = prefix
            if prefix is None:
                what = "nothing worth keeping is frozen in front of the first trainable layer"
                log.info("no activations are kept: %s", what)
        return self._prefixes[model]

    def _enter(
        self,
        model: GraftedModel,
        prefix: FrozenPrefix,
        split: Split,
        cut: Cut,
        cache: ActivationCache | None,
    ) -> Activations | None:
        """Return a split's activations; None where no cut is exact."""
        rows = len(split.records.source)
        name = _name_of(prefix, split, cut)
        if cache is not None:
            file = self._open(cache.folder / f"{name}{SUFFIX}", rows)
            if file is not None:
                return Activations(split, prefix, file.form, file)

        if name not in self._forms:
            self._forms[name] = _try_cut(prefix, model, split, cut)
        form = self._forms[name]
        if form is None:
            return None
        file = None
        if cache is not None:
            file = self._make(name, cache, form, rows, prefix.name)
        return Activations(split, prefix, form, file)

    def _open(self, path: Path, rows: int) -> ActivationFile | None:
        """Return a file that is there; None where it is not, or cannot be read."""
        if not path.is_file():
            self._files.pop(path, None)
            return None
        if path not in self._files:
            try:
                self._files[path] = open_file(path, rows)
            except (OSError, ValueError, KeyError, TypeError):
                log.warning("a file of activations cannot be read; it is made anew")
                path.unlink(missing_ok=True)
                return None
        return self._files[path]

    def _make(
        self, name: str, cache: ActivationCache, form: ActivationForm, rows: int, cut: str
    ) -> ActivationFile | None:
        """Return an empty file; None where it would be too large or the disk refuses."""
        size = file_size(form, rows)
        if size > cache.max_bytes:
            if name not in self._too_large:
                what = "above cache.max_bytes: they are computed each time"
                log.info("activations would take %d bytes, %s", size, what)
            self._too_large.add(name)
            return None
        path = cache.folder / f"{name}{SUFFIX}"
        try:
            cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            cache.make_room(size)
            self._files[path] = make_file(path, form, rows, cut)
        except OSError as error:
            log.warning("activations are not kept: %s", error.strerror)
            return None
        what = f"{form.values} values of {form.dtype} a record"
        log.info("activations in front of %s are kept: %s", cut, what)
        return self._files[path]


def _name_of(prefix: FrozenPrefix, split: Split, cut: Cut) -> str:
    """Return the name of a file: a hash of everything that its bits depend on."""
    key = {
        "backbone": cut.backbone,
        "fingerprint": cut.fingerprint,
        "cut": prefix.name,
        # features of other depths end at the same head
        "stages": [stage.name for stage in prefix.stages],
        "preprocess": split.preparation.to_json(),
        "data": split.records.source.fingerprint(),
        "dtype": cut.dtype,
        "block": BLOCK,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if prefix.front is not None:
        # other instructions, other bits
        key |= {"precision": "bfloat16", "instructions": name_instructions()}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _try_cut(
    prefix: FrozenPrefix, model: GraftedModel, split: Split, cut: Cut
) -> ActivationForm | None:
    """Return the form of the activations; None unless the cut is exact and every place in a block
    gives the same bits.
    """
    material = family_line(cut.backbone).material
    example = split.prepare(split.rows[:1])
    draw = draw_probes(material, split.preparation, example, 1).joined
    block = prefix(draw.expand(BLOCK, *draw.shape[1:]).contiguous())
    shape = tuple(block.shape[1:])
    channels_last = block.ndim == 4 and not block.is_contiguous()
    exact = ActivationForm(shape, channels_last, "float32")
    with torch.inference_mode():
        activations = exact.unflatten(exact.flatten(prefix(draw)))
        is_exact = torch.equal(prefix.tail(activations), model(draw))
    if is_exact and bool((block == block[:1]).all()):
        return ActivationForm(shape, channels_last, cut.dtype)
    what = f"this network's cut in front of {prefix.name} is not exact"
    log.info("no activations are kept: %s", what)
    return None


_OPENED = CutModels()


def behind_prefix(
    model: GraftedModel, examples: Examples, cut: Cut, cache: ActivationCache | None
) -> tuple[GraftedModel, Examples]:
    """Return what `CutModels.behind_prefix` does, by what this process has opened."""
    return _OPENED.behind_prefix(model, examples, cut, cache)
