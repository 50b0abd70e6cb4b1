"""`fedgraft nearest`: for new records the public examples that a shared model sees as most alike.

A record is what the model's head reads of it, one vector; how alike two are is the cosine between
them. Nothing leaves the machine that it runs on, and no vector is written to a disk.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.data_set import DataSource, open_source
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.readers.reader_table import PREFIX
from fedgraft.client.readers.scan_form import ScanForm
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError
from fedgraft.common.files.foreign_text import as_cell
from fedgraft.common.files.whole_files import replacing
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.shared_model import SharedModel, load_shared_model
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.nearest_neighbours import find_nearest
from fedgraft.common.tasks.labels import Label
from fedgraft.simulations.predict import read_batches

HEADER = ("input", "rank", "example", "label", "similarity")
# public records that go through the network at once
AT_ONCE = 64


@dataclass(frozen=True)
class Described:
    """Records as a shared model's head reads them.

    Attributes:
        names: of each, for people, or its number.
        features: `(n, d)`.
        labels: as their data state them, the plan's names for its classes; None: none is known.
    """

    names: Sequence[str | int]
    features: Tensor
    labels: list[str] | None = None


@dataclass(frozen=True)
class Likeness:
    """A public example beside an input.

    Attributes:
        rank: from 1, the most similar.
        label: of the example; empty where it has none.
        similarity: the cosine between both, −1 to 1.
    """

    input: str | int
    rank: int
    example: str | int
    label: str
    similarity: float


def find_alike(
    run: Path, data: Path, among: str, count: int, backbone: Path | None = None
) -> list[Likeness]:
    """Return the public examples that are nearest to each input, an input after the other.

    Args:
        run: of the shared model.
        data: what is asked about, as `fedgraft predict` takes it.
        among: public examples: the same, or labelled as a hospital's data are.
        count: how many for each input.
        backbone: the backbone's file, if it does not lie in the run's folder.

    Raises:
        UserError: no such run, input or example, one that cannot be read, or a question whose
            records are no single vector.
    """
    shared = load_shared_model(run, backbone)
    torch.set_num_threads(shared.plan.train.threads)
    inputs = describe_inputs(shared, data)
    public = describe_public(shared, among)
    return tell_alike(inputs, public, count)


def tell_alike(inputs: Described, public: Described, count: int) -> list[Likeness]:
    """Return the nearest public examples of each input, the most similar first."""
    if count < 1:
        raise UserError(f"{count} examples for each input", where="count", remedy="write 1 or more")
    found = find_nearest(inputs.features, public.features, count)
    alike: list[Likeness] = []
    for name, positions, similarities in zip(
        inputs.names, found.positions.tolist(), found.similarities.tolist(), strict=True
    ):
        for rank, at in enumerate(positions, start=1):
            label = "" if public.labels is None else public.labels[at]
            alike.append(Likeness(name, rank, public.names[at], label, similarities[rank - 1]))
    return alike


def write_alike(alike: list[Likeness], out: Path) -> None:
    """Write a line for each pair. Raise `UserError` for a file that cannot be written."""
    try:
        with replacing(out) as part, part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for each in alike:
                names = [as_cell(str(each.input)), each.rank, as_cell(str(each.example))]
                writer.writerow([*names, as_cell(each.label), f"{each.similarity:.6f}"])
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        remedy = "name another file: --out FILE.csv"
        raise UserError(what, where=str(out), remedy=remedy) from error


# ── records ───────────────────────────────────────────────────────────────────────────────────────
def describe_inputs(shared: SharedModel, data: Path) -> Described:
    """Return the inputs of `data`. Raise `UserError` as `fedgraft predict`, and for none."""
    names: list[str] = []
    parts: list[Tensor] = []
    for some, raw in read_batches(shared, data):
        names += some
        parts.append(shared.vectors(shared.preprocess(raw)))
    if not names:
        raise UserError("there is nothing in it", where=str(data), remedy="give some records")
    return Described(names, torch.cat(parts))


def describe_public(shared: SharedModel, among: str) -> Described:
    """Return public examples, with their labels where they are as a hospital's data are.

    Raises:
        UserError: there are none, or they cannot be read, labelled or not.
    """
    if not among.startswith(PREFIX) and not Path(among).exists():
        remedy = "give a folder or a file of public examples, or sklearn:digits"
        raise UserError("no such file or folder", where=f"--among {among}", remedy=remedy)
    try:
        source = open_public(shared, among)
    except UserError:
        if among.startswith(PREFIX):
            raise
        # without labels, or what is wrong with them as inputs is said
        return describe_inputs(shared, Path(among))
    if source.skipped:
        # what is wrong with them is said file by file
        return describe_inputs(shared, Path(among))
    if not len(source):
        raise UserError("there is nothing in it", where=among, remedy="give public examples")
    parts = [shared.vectors(batch) for batch in list_batches(source, shared)]
    folder = Path(among).absolute()
    if not folder.is_dir():
        folder = folder.parent
    names = [source.place(row).removeprefix(f"{folder}/") for row in range(len(source))]
    labels = name_labels(source.labels, shared.plan.task)
    return Described(names, torch.cat(parts), labels)


def open_public(shared: SharedModel, among: str) -> Source:
    """Return labelled examples. Raise `UserError` where there are none."""
    section = shared.plan.backbone
    data = DataSource(
        among,
        signal=section.signal,
        form=PixelForm.of(section),
        scan=ScanForm.of(section),
    )
    return open_source(data, shared.plan.task)


def list_batches(source: Source, shared: SharedModel) -> Iterator[Batch]:
    """Yield all records of a source as the model's network takes them, some at a time."""
    for start in range(0, len(source), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(source)))
        yield source.read(rows, shared.preprocess)


def name_labels(labels: Sequence[Label], task: TaskSection) -> list[str]:
    """Return labels in words: what the plan calls a class that its data call otherwise."""
    stated = task.labels or range(len(task.classes))
    names = dict(zip(stated, task.classes, strict=False))
    return [names.get(label, str(label)) for label in labels]
