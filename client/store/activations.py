"""What enters the first trainable layer, computed once for each record and kept on disk.

    records → preprocessing → frozen prefix → [kept here] → trainable layers → logits

One file for each (backbone, place of the cut, preprocessing, data, precision): a row of it is a
record's activations and their checksum. Rows are filled as they are asked for, by any number of
threads and processes: a row counts when its checksum fits, so half a row never does. They are
patient data: the folder is 0700, its files 0600.

The same bits come out whether a row was kept or is computed anew. A convolution's last bit depends
on the size of the batch, so the prefix only ever sees batches of BLOCK records; that their places
within such a batch are equal is tried out for each network, and one for which they are not gets no
cut.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.examples import Examples
from fedgraft.client.data.split import Split
from fedgraft.client.readers.source import Source
from fedgraft.client.store.activation_cache import SUFFIX, ActivationCache
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.frozen_prefix import FrozenPrefix, frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel

BLOCK = 32  # records that go through the prefix at once; always, with zeros in empty places
_PAGE = 4096
log = logging.getLogger("fedgraft.client")


@dataclass(frozen=True, eq=False)
class Activations:
    """Examples as they enter the first trainable layer, instead of prepared inputs.

        model, examples = behind_prefix(model, split, cut, cache)
        model(examples.inputs(positions))  # the same outputs as the whole model's

    Attributes:
        split: the records.
        prefix: what is frozen in front of that layer.
        form: shape and layout of its output.
        kept: where rows are kept; None: they are computed each time they are asked for.
    """

    split: Split
    prefix: FrozenPrefix
    form: Form
    kept: Kept | None

    def __len__(self) -> int:
        return len(self.split)

    @property
    def labels(self) -> Tensor:
        """The targets, int64 `(n,)`."""
        return self.split.labels

    def through(self, change: Callable[[Examples], Examples]) -> Examples:
        """Return what `change` makes of the examples."""
        return change(self)

    def inputs(self, positions: Tensor) -> Batch:
        """Return activations `(len(positions), …)` float32 of these positions within the split."""
        rows = self.split.rows[positions.numpy()]
        if self.kept is None:
            return Batch({"activation": self.form.read(self._computed(rows))})
        values, missing = self.kept.read(rows)
        if missing.any():
            unknown = np.unique(rows[missing])
            # empty places of the last block
            more = self.kept.claim(-len(unknown) % BLOCK, after=int(unknown[-1]))
            filled = np.concatenate([unknown, more])
            computed = self._computed(filled)
            self.kept.write(filled, computed)
            values[missing] = computed[np.searchsorted(unknown, rows[missing])]
        return Batch({"activation": self.form.read(values)})

    def _computed(self, rows: np.ndarray) -> np.ndarray:
        """Return the prefix's output for these rows, flat, in the precision that is kept."""
        parts = [np.empty((0, self.form.values), self.form.dtype)]
        for start in range(0, len(rows), BLOCK):
            x = self.split.prepare(rows[start : start + BLOCK]).only
            block = torch.zeros((BLOCK, *x.shape[1:]))
            block[: len(x)] = x
            parts.append(self.form.flat(self.prefix(block))[: len(x)])
        return np.concatenate(parts)


@dataclass(frozen=True)
class Form:
    """Shape and memory layout of one record's activations, and the precision they are kept in."""

    shape: tuple[int, ...]
    channels_last: bool
    dtype: str

    @property
    def values(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.values * np.dtype(self.dtype).itemsize

    def flat(self, h: Tensor) -> np.ndarray:
        """(n, …) → (n, values), channels last where the network has them so."""
        if self.channels_last:
            h = h.permute(0, 2, 3, 1)
        return h.reshape(len(h), -1).numpy().astype(self.dtype)

    def read(self, flat: np.ndarray) -> Tensor:
        """(n, values) → (n, …) float32, laid out in memory as the network's own."""
        h = torch.from_numpy(flat).float()
        if not self.channels_last:
            return h.view(len(h), *self.shape)
        channels, height, width = self.shape
        return h.view(len(h), height, width, channels).permute(0, 3, 1, 2)


class Kept:
    """One file of activations: a page that says what it is, a checksum for each row, the rows.

    Args:
        path: the file; it must be there.
        form: of a row.
        rows: how many the data have.
    """

    def __init__(self, path: Path, form: Form, rows: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._descriptor)
        os.utime(self._descriptor)
        self.form, self._start = form, _start(rows)
        self._sums = np.memmap(path, np.uint32, "r", _PAGE, (rows,))
        self._values = np.memmap(path, form.dtype, "r", self._start, (rows, form.values))
        self._known = np.zeros(rows, bool)  # rows whose checksum this process has seen to fit
        self._claimed = np.zeros(rows, bool)
        self._claiming = threading.Lock()
        self._writable = True

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows `(n, values)`, and which of them are not there or damaged `(n,)`."""
        fits = self._known[
            rows
        ]  # before the values: a row that another thread keeps in between is not in them
        values = np.asarray(self._values[rows])
        for position in np.flatnonzero(~fits):
            fits[position] = self._sums[rows[position]] == _checksum(values[position])
        self._known[rows[fits]] = True
        return values, ~fits

    def claim(self, count: int, after: int) -> np.ndarray:
        """At most `count` rows that nobody has computed yet, to fill a block: a block costs the
        same when full.
        """
        with self._claiming:
            free = (
                np.flatnonzero((self._sums[after + 1 :] == 0) & ~self._claimed[after + 1 :])[:count]
                + after
                + 1
            )
            self._claimed[free] = True
        return free

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Keep rows. A full disk is no error: what could not be kept is computed again."""
        if not self._writable:
            return
        try:
            for row, value in zip(rows.tolist(), values, strict=True):
                os.pwrite(
                    self._descriptor, value.tobytes(), self._start + row * self.form.row_bytes
                )
                os.pwrite(self._descriptor, np.uint32(_checksum(value)).tobytes(), _PAGE + 4 * row)
        except OSError as error:
            self._writable = False
            log.warning("activations are kept no longer: %s", error.strerror)


def _start(rows: int) -> int:
    return _PAGE + -(-4 * rows // _PAGE) * _PAGE


def _checksum(value: np.ndarray) -> int:
    return zlib.crc32(value.tobytes()) or 1  # 0 says that the row was never written


# ── the cut of a model, and the file for it ───────────────────────────────────────────────────────
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


def behind_prefix(
    model: GraftedModel, examples: Examples, cut: Cut, cache: ActivationCache | None
) -> tuple[GraftedModel, Examples]:
    """Return a model's part behind its frozen prefix, and the examples as they enter there; both as
    given where there is no cut.

    Args:
        cache: where to keep them; None: computed each time, with the same result.
    """
    prefix = _prefix_of(model)
    if prefix is None or len(examples) == 0:
        return model, examples
    uncut: list[Examples] = []

    def enter(part: Examples) -> Examples:
        form, kept = None, None
        if isinstance(part, Split):
            form, kept = _form_and_file(model, prefix, part, cut, cache)
        if form is None or not isinstance(part, Split):
            uncut.append(part)
            return part
        return Activations(part, prefix, form, kept)

    entering = examples.through(enter)
    if uncut:
        return model, examples
    return prefix.tail, entering


def _form_and_file(
    model: GraftedModel, prefix: FrozenPrefix, split: Split, cut: Cut, cache: ActivationCache | None
) -> tuple[Form | None, Kept | None]:
    """Return how a split's activations lie in memory (None: no cut is exact), and their file."""
    source = split.records.source
    key = {
        "backbone": cut.backbone,
        "fingerprint": cut.fingerprint,
        "cut": prefix.name,
        "preprocess": split.preparation.to_json(),
        "data": _fingerprint(source),
        "dtype": cut.dtype,
        "block": BLOCK,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    with _opening:
        kept, form = _opened(name, cache, len(source))
        if form is None:
            form = _tried(name, prefix, model, split, cut.dtype)
            if form is not None and cache is not None:
                kept = _make(name, cache, form, len(source), prefix.name)
    return form, kept


_opening = threading.Lock()
_files: dict[tuple[Path, str], Kept] = {}
_forms: dict[str, Form | None] = {}
_too_large: set[str] = set()
_prefixes: weakref.WeakKeyDictionary[GraftedModel, FrozenPrefix | None] = (
    weakref.WeakKeyDictionary()
)
_fingerprints: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()


def _prefix_of(model: GraftedModel) -> FrozenPrefix | None:
    if model not in _prefixes:
        found = _prefixes[model] = frozen_prefix(model)
        if found is None:
            log.info(
                "no activations are kept: nothing worth keeping is frozen in front of the first"
                " trainable layer"
            )
    return _prefixes[model]


def _fingerprint(source: Source) -> str:
    """SHA-256 over the records of a file, in their order."""
    if source not in _fingerprints:
        _fingerprints[source] = hashlib.sha256(b"".join(source.digests)).hexdigest()
    return _fingerprints[source]


def _opened(name: str, cache: ActivationCache | None, rows: int) -> tuple[Kept | None, Form | None]:
    """The file of a name, if it is there, and the form of its rows."""
    if cache is None:
        return None, _forms.get(name)
    path = cache.folder / f"{name}{SUFFIX}"
    if not path.is_file():
        _files.pop((cache.folder, name), None)
        return None, None
    if (cache.folder, name) not in _files:
        try:
            with path.open("rb") as file:
                said = json.loads(file.read(_PAGE).rstrip(b"\0"))
            form = Form(tuple(said["shape"]), said["channels_last"], said["dtype"])
            _files[cache.folder, name] = Kept(path, form, rows)
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("a file of activations cannot be read; it is made anew")
            path.unlink(missing_ok=True)
            return None, None
    kept = _files[cache.folder, name]
    return kept, kept.form


def _make(name: str, cache: ActivationCache, form: Form, rows: int, cut: str) -> Kept | None:
    """An empty file for the rows of a data set; None where it would be too large or the disk
    refuses.
    """
    wanted = _start(rows) + rows * form.row_bytes
    if wanted > cache.max_bytes:
        if name not in _too_large:
            log.info(
                "activations would take %d bytes, above cache.max_bytes: they are computed each"
                " time",
                wanted,
            )
        _too_large.add(name)
        return None
    try:
        cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.make_room(wanted)
        path = cache.folder / f"{name}{SUFFIX}"
        handle, part = tempfile.mkstemp(dir=cache.folder, prefix=f"{name}{SUFFIX}.")  # 0600
        try:
            said = {
                "shape": form.shape,
                "channels_last": form.channels_last,
                "dtype": form.dtype,
                "cut": cut,
            }
            os.write(handle, json.dumps(said).encode().ljust(_PAGE, b"\0"))
            os.truncate(handle, wanted)  # takes no space before rows are written
            os.link(
                part, path
            )  # unlike a rename, never over a file that another process has begun to fill
        except FileExistsError:
            pass
        finally:
            os.close(handle)
            os.unlink(part)
        _files[cache.folder, name] = kept = Kept(path, form, rows)
    except OSError as error:
        log.warning("activations are not kept: %s", error.strerror)
        return None
    log.info(
        "activations in front of %s are kept: %d values of %s a record",
        cut,
        form.values,
        form.dtype,
    )
    return kept


def _tried(
    name: str, prefix: FrozenPrefix, model: GraftedModel, split: Split, dtype: str
) -> Form | None:
    """The form of the activations, if the cut is exact and every place in a block gives the same
    bits; or None.
    """
    if name not in _forms:
        example = split.prepare(split.rows[:1]).only
        draw = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
        block = prefix(draw.expand(BLOCK, *draw.shape[1:]).contiguous())
        channels_last = block.ndim == 4 and not block.is_contiguous()
        form = Form(tuple(block.shape[1:]), channels_last, dtype)
        back = Form(form.shape, channels_last, "float32")
        with torch.inference_mode():
            h = prefix(draw)
            same = torch.equal(prefix.tail(back.read(back.flat(h))), model(draw))
        _forms[name] = form if same and bool((block == block[:1]).all()) else None
        if _forms[name] is None:
            log.info(
                "no activations are kept: this network's cut in front of %s is not exact",
                prefix.name,
            )
    return _forms[name]
