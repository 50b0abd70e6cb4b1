"""Local training against slow loops and formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedgraft.client.data.examples import batches_in_order, shuffle_batches
from fedgraft.client.data.split import Split
from fedgraft.client.training.local_steps import LocalTraining, evaluate, learning_rate, train
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import augment_images
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.classification import log_shares

COLUMNS = ("a", "b", "c", "d", "e")
THREE = TaskSection(kind="tabular-classification", classes=("x", "y", "z"), columns=COLUMNS)
TWO = TaskSection(kind="tabular-classification", classes=("x", "y"), columns=COLUMNS)


class Table:
    """Records of a small random table."""

    def __init__(self, rows: int = 40) -> None:
        generator = np.random.default_rng(0)
        self.values = torch.from_numpy(generator.normal(size=(rows, 5)).astype(np.float32))
        self.labels = generator.integers(0, 3, rows)

    def read(self, rows):
        return self.values[torch.from_numpy(np.asarray(rows))]

    def prepare(self, rows, preparation):
        return preparation(Table.read(self, rows))

    def targets(self, rows, preparation):
        return torch.from_numpy(self.labels[rows])


def as_batch(values: torch.Tensor) -> Batch:
    return Batch({"table": values})


class OfBatches(nn.Linear):
    """A linear layer that takes a batch."""

    def forward(self, batch: Batch | torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(batch if isinstance(batch, torch.Tensor) else batch.only)


def split(rows: int = 40) -> Split:
    return Split(Table(rows), np.arange(rows), as_batch)  # type: ignore[arg-type]


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return OfBatches(5, 3)


def test_steps_equal_a_loop_written_out():
    """Breaks if batches, their order, the loss or the proximal term are not what they are said to
    be.

    SGD by hand: w ← w − lr · (∇CE + μ (w − w₀)), over the permutation that the same generator
    draws.
    """
    lr, mu = 0.1, 0.5
    model, reference, data = linear(), linear(), split()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    training = LocalTraining(epochs=2, batch_size=16, loss=F.cross_entropy, proximal=mu)
    generator = torch.Generator().manual_seed(3)
    train(model, data, training, optimizer=optimizer, generator=generator)
    generator = torch.Generator().manual_seed(3)
    start = [p.detach().clone() for p in reference.parameters()]
    for _ in range(2):
        order = torch.randperm(40, generator=generator)
        for batch in (order[:16], order[16:32], order[32:]):
            loss = F.cross_entropy(reference(data.records.read(batch.numpy())), data.labels[batch])
            gradients = torch.autograd.grad(loss, list(reference.parameters()))
            with torch.no_grad():
                for p, g, s in zip(reference.parameters(), gradients, start, strict=True):
                    p -= lr * (g + mu * (p - s))
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_every_example_is_seen_once_an_epoch(batch_size):
    """Breaks if the last, smaller batch were dropped, or a batch larger than the data gave no
    step.
    """
    seen = torch.cat(
        [
            labels
            for _, labels in shuffle_batches(split(), batch_size, torch.Generator().manual_seed(0))
        ]
    )
    assert sorted(seen.tolist()) == sorted(split().labels.tolist())


def test_large_splits_give_the_same_batches(monkeypatch):
    """Breaks if a split that is too large to keep in memory were read differently."""
    kept = list(batches_in_order(split()))
    monkeypatch.setattr("fedgraft.client.data.split.KEPT_BYTES", 1)
    streamed = list(batches_in_order(split()))
    for (a, _), (b, _) in zip(kept, streamed, strict=True):
        assert torch.equal(a.only, b.only)


def test_an_empty_test_split_measures_nothing():
    """Breaks if a node without test data ended the round."""
    data = Split(Table(), np.arange(0), as_batch)  # type: ignore[arg-type]
    summary = evaluate(linear(), data, THREE).summary()
    assert summary["examples"] == 0
    assert summary["accuracy"] is None


def test_cosine_schedule():
    """Breaks if the schedule does not start at the base and halve in the middle: 0.5 (1 + cos π/2)
    = 0.5.
    """
    assert learning_rate(0.2, "cosine", 1, 10) == pytest.approx(0.2)
    assert learning_rate(0.2, "cosine", 6, 10) == pytest.approx(0.1)
    assert learning_rate(0.2, "constant", 6, 10) == 0.2


def test_augmentation_moves_pixels_and_invents_none():
    """Breaks if a flip or crop changed values, shape, or drew on the global random state."""
    images = torch.rand(32, 3, 16, 16) + 1
    before = torch.random.get_rng_state()
    batch = Batch({"image": images})
    crops = augment_images(batch, "flip-crop", torch.Generator().manual_seed(0)).only
    assert torch.equal(before, torch.random.get_rng_state())
    assert crops.shape == images.shape
    for image, crop in zip(images, crops, strict=True):
        inside = crop[crop != 0]
        assert torch.isin(inside, image).all()
    flips = augment_images(batch, "flip", torch.Generator().manual_seed(0)).only
    for image, flip in zip(images, flips, strict=True):
        assert torch.equal(image, flip) or torch.equal(image, flip.flip(-1))


def test_images_are_turned_and_moved_each_by_its_own_draw():
    """A draw that all share would make one record's gradient depend on another's; one from the
    global state would give other bits at the next run.
    """
    side = 40
    image = torch.zeros(1, 3, side, side)
    image[..., 16:24, 10:18] = 1.0
    batch = Batch({"image": image.expand(20, -1, -1, -1) - 0.5})
    before = torch.random.get_rng_state()
    changed = augment_images(batch, "affine", torch.Generator().manual_seed(0)).only
    assert torch.equal(before, torch.random.get_rng_state())
    again = augment_images(batch, "affine", torch.Generator().manual_seed(0)).only
    assert torch.equal(changed, again)
    first = augment_images(batch[:1], "affine", torch.Generator().manual_seed(0)).only
    assert torch.equal(changed[:1], first)
    # what comes into view is as dark as the darkest pixel
    assert changed.min() == -0.5
    inside = changed[:, 0] + 0.5
    size = inside.sum((1, 2))
    assert bool(((size > 64 * 0.79) & (size < 64 * 1.23)).all())
    columns = torch.arange(side, dtype=torch.float32)
    across = (inside.sum(1) * columns).sum(1) / size
    is_mirrored = across > side / 2
    assert 0 < int(is_mirrored.sum()) < 20
    # at 13.5 or 25.5, less what 10 degrees, 5 % and 10 % may move it
    at = torch.where(is_mirrored, side - 1 - across, across)
    assert bool(((at - 13.5).abs() < 0.05 * side + 6 * 0.13 + 0.5).all())
    assert len(set(across.tolist())) == 20


class Two:
    """Two normal distributions on a line, at −1 and 1, in unequal numbers."""

    def __init__(self, first: int, second: int) -> None:
        self.labels = np.repeat([0, 1], [first, second])
        spread = torch.randn((first + second, 1), generator=torch.Generator().manual_seed(0))
        self.values = spread + torch.from_numpy(2.0 * self.labels - 1)[:, None].float()

    read = Table.read
    prepare = Table.prepare
    targets = Table.targets


@pytest.mark.parametrize("steps", [1, 7, 13])
def test_steps_that_are_counted_go_over_the_data_again(steps):
    """A site of ten images would take one step where another takes ten, and be drowned by it."""
    seen = []

    def loss(outputs, labels):
        seen.append(len(labels))
        return F.cross_entropy(outputs, labels)

    training = LocalTraining(epochs=1, batch_size=16, loss=loss, steps=steps)
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(3)
    trained = train(model, split(), training, optimizer=optimizer, generator=generator)
    assert trained.steps == steps == len(seen)
    # 40 records are two whole batches and a half one
    assert seen == ([16, 16, 8] * 5)[:steps]


@pytest.mark.parametrize("balanced", [True, False])
def test_the_balanced_loss_takes_a_nodes_own_shares_out(balanced):
    """A shared model that has learnt how frequent a class is at the larger nodes.

    By Bayes' rule the classes part where 2x + log(p₁/p₀) = 0: at 0 for equal shares, at log(9)/2 =
    1.10 for 9 : 1.
    """
    data = Split(Two(9000, 1000), np.arange(10_000), as_batch)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = OfBatches(1, 2)
    shares = log_shares(data.labels, TWO)

    def loss(outputs, labels):
        return F.cross_entropy(outputs + shares if balanced else outputs, labels)

    train(
        model,
        data,
        LocalTraining(epochs=6, batch_size=200, loss=loss),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.03),
        generator=torch.Generator().manual_seed(0),
    )
    slope, offset = (
        (model.weight[1] - model.weight[0]).item(),
        (model.bias[1] - model.bias[0]).item(),
    )
    assert -offset / slope == pytest.approx(0.0 if balanced else np.log(9) / 2, abs=0.12)


def test_a_class_that_a_node_does_not_have_is_not_unlearnt():
    """A logit that every node without the class pushes down; an infinity that becomes a NaN."""
    logits = torch.zeros(4, 3, requires_grad=True)
    shares = log_shares(torch.tensor([0, 0, 2, 2]), THREE)
    F.cross_entropy(logits + shares, torch.tensor([0, 0, 2, 2])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 1] == 0).all()
    assert log_shares(torch.empty(0, dtype=torch.int64), TWO).isinf().all()
