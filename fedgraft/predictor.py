"""A shared model that predicts arrays, data frames and files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgraft.common.errors import UserError
from fedgraft.common.inputs import input_line

if TYPE_CHECKING:
    import pandas

    from fedgraft.common.inputs.material import Raw
    from fedgraft.common.model.shared_model import SharedModel
    from fedgraft.simulations.nearest_examples import Described


class Predictor:
    """A shared model, ready to use.

    >>> model = fedgraft.load_shared_model("two-rounds")
    >>> model.classes
    ('five', 'six', 'seven', 'eight', 'nine')
    >>> images = np.zeros((2, 1, 8, 8), np.uint8)
    >>> model.predict(images).columns.tolist()  # a row for each image
    ['class', 'p_five', 'p_six', 'p_seven', 'p_eight', 'p_nine']
    """

    def __init__(self, shared: SharedModel, path: Path) -> None:
        self._shared = shared
        self.path = path

    @classmethod
    def load(cls, path: str | Path, backbone: str | Path | None = None) -> Predictor:
        """Open a shared model's folder, or the run's folder it lies in.

        Raises:
            UserError: no shared model there, or files that do not belong together.
        """
        # torch takes a second to import
        from fedgraft.common.model.shared_model import load_shared_model

        return cls(load_shared_model(path, backbone), Path(path))

    @property
    def classes(self) -> tuple[str, ...]:
        """What the model tells apart, in the order of its outputs; empty where answers are no
        classes.
        """
        return self._shared.classes

    @property
    def plan(self) -> Any:
        """The plan that it was trained under."""
        return self._shared.plan

    def predict(
        self, inputs: Any, *, sliding: bool = False, tokens: int | None = None
    ) -> pandas.DataFrame:
        """Predict raw inputs.

        Args:
            inputs: images `(n, 1 or 3, H, W)` uint8 as an array or tensor; volumes `(n, channels,
                D, H, W)` in the plan's spacing, or a list of `Volume`; signals `(n, channels, T)`
                at the plan's rate, or a list of `Signal`; a list of `ImageWithRow`; a data frame
                with the plan's columns, or an array `(n, columns)`; a list of texts, or a data
                frame with the plan's columns of text; or the path of an image, a folder of images,
                an .npz, or a table of rows, texts, signals or images.
            sliding: look at volumes that are larger than the plan's size in overlapping crops, and
                take the mean of their probabilities.
            tokens: that are written at most, where answers are texts (default: 64).

        Returns:
            A row for each input: `class`, the answer at the model's operating point, and
                `p_NAME` for every class; of other questions what `fedgraft predict` writes, too.
                For paths the index is the input's name.

        Raises:
            UserError: inputs of another kind than the model takes.
        """
        import pandas

        from fedgraft.simulations.predict import check_tokens, read_inputs, tell_batch

        check_tokens(self._shared, tokens)
        how: dict[str, Any] = {"sliding": sliding, "tokens": tokens}
        names: list[str] | None = None
        if isinstance(inputs, str | Path):
            names, told = read_inputs(self._shared, Path(inputs), **how)
        else:
            told = tell_batch(self._shared, self._as_raw(inputs), **how)
        table = pandas.DataFrame(told.values.numpy(), columns=list(self._shared.columns))
        if told.answers is not None:
            table.insert(0, self._shared.question.answered, told.answers)
        if names is not None:
            table.index = pandas.Index(names, name="input")
        return table

    def nearest(self, inputs: Any, *, among: Any, count: int = 5) -> pandas.DataFrame:
        """Find the public examples that the model sees as most alike each input.

        Args:
            inputs: as of `predict`.
            among: examples that anybody may see: as of `predict`, or the path of some with labels,
                as a hospital's data are, or `sklearn:digits`.
            count: how many for each input.

        Returns:
            A row for each pair, the most alike first: `input`, `rank` from 1, `example`, its
                `label` where it has one, and `similarity`, the cosine between what the head reads
                of both. Of arrays inputs and examples are numbered from 0.

        Raises:
            UserError: as `predict`, and a question whose head reads places or tokens of a record.
        """
        import pandas

        from fedgraft.simulations.nearest_examples import HEADER, tell_alike

        described = self._describe(inputs, is_public=False)
        public = self._describe(among, is_public=True)
        alike = tell_alike(described, public, count)
        return pandas.DataFrame([vars(each) for each in alike], columns=list(HEADER))

    def _describe(self, records: Any, *, is_public: bool) -> Described:
        """Return records as the head reads them, each with its name or number."""
        from fedgraft.simulations.nearest_examples import (
            Described,
            describe_inputs,
            describe_public,
        )

        if isinstance(records, str | Path):
            if is_public:
                return describe_public(self._shared, str(records))
            return describe_inputs(self._shared, Path(records))
        raw = self._as_raw(records)
        features = self._shared.vectors(self._shared.preprocess(raw))
        return Described(range(len(features)), features)

    def masks(self, inputs: Any) -> list[np.ndarray]:
        """Return the class of each place of images or volumes, uint8, in their own size.

        Args:
            inputs: as of `predict`: images `(n, 1 or 3, H, W)`, a list of `Volume`, or a path.

        Raises:
            UserError: a model whose answers are no masks, or inputs of another kind than it takes.
        """
        from fedgraft.common.model.whole_masks import outline
        from fedgraft.simulations.predict import outline_path

        if isinstance(inputs, str | Path):
            return [mask.numpy() for mask in outline_path(self._shared, Path(inputs))]
        return [outline(self._shared, each).numpy() for each in self._as_raw(inputs)]

    def _as_raw(self, inputs: Any) -> Raw:
        """Return inputs as the model's preparation takes them."""
        import torch

        if self.plan.task.text:
            return self._as_texts(inputs)
        if isinstance(inputs, torch.Tensor):
            return inputs
        if self._takes_rows_with_images() and not isinstance(inputs, list):
            what = "no images with rows"
            remedy = "give the path of a .csv with a column `path`, or a list of ImageWithRow"
            raise UserError(what, where="predict", remedy=remedy)
        if isinstance(inputs, list) and self._takes_lists():
            return inputs
        if hasattr(inputs, "columns"):
            table: Any = inputs
            return torch.from_numpy(self._encode(table))
        return torch.from_numpy(np.ascontiguousarray(inputs))

    def _takes_lists(self) -> bool:
        """Return whether raw records are volumes, signals or images with rows, each of its own
        size.
        """
        line = input_line(self.plan.task.material)
        return line.has_volumes or line.has_signals or self._takes_rows_with_images()

    def _takes_rows_with_images(self) -> bool:
        """Return whether a raw record is an image and a row."""
        line = input_line(self.plan.task.material)
        return line.has_columns and line.has_pixels

    def _as_texts(self, inputs: Any) -> list[str]:
        """Return texts as they are given, or out of a data frame as out of a hospital's file."""
        if not hasattr(inputs, "columns"):
            return list(inputs)
        from fedgraft.client.readers.text_table import read_texts

        with tempfile.TemporaryDirectory(prefix="fedgraft-predict-") as folder:
            file = Path(folder) / "rows.csv"
            inputs.to_csv(file, index=False)
            return read_texts(file, self.plan.task.prompt)

    def _encode(self, table: pandas.DataFrame) -> np.ndarray:
        """Return a data frame's cells as the plan encodes them. Raise `UserError` as a file's."""
        from fedgraft.client.readers.table_file import read_features

        task = self.plan.task
        if not task.columns:
            what = "a table, and this model takes images"
            raise UserError(what, where="predict", remedy="give an array (n, 1 or 3, H, W)")
        # written to a file: cells are encoded, and mistakes told, as at a hospital
        with tempfile.TemporaryDirectory(prefix="fedgraft-predict-") as folder:
            file = Path(folder) / "rows.csv"
            table.to_csv(file, index=False)
            return read_features(file, task.columns, task.encoding)

    def __repr__(self) -> str:
        question = self._shared.question.describe(self.plan.task)
        return f"Predictor({str(self.path)!r}): {question}; {self.plan.backbone.name}"
