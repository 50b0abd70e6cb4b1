"""What a process keeps open between messages: nodes, data, budgets and models, each made once.

A deployment's process has one node and one plan; a simulation's has many nodes, and threads that
each need a model of their own.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch
from flwr.app import Context

from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import Node, load_node
from fedgraft.client.node_task import open_splits, open_validation, working_model
from fedgraft.client.open_on_card import open_on_card
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.clipping_engine import losses_of
from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.store.backbone_store import BackboneStore
from fedgraft.common.backbones.backbone import backbone_from_state, preparation_from_json
from fedgraft.common.errors import Code, Refused
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.devices import CPU, find_device
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.phases import has_depth_head
from fedgraft.common.plan.plan_file import agreement_from_json, agreement_hash
from fedgraft.common.tasks import TASKS
from fedgraft.common.wire.layout import Layout

MOST_BYTES = 4 * 2**30  # of opened data; what was used longest ago is opened again when asked for
SMALL = 4096  # bytes that an opened thing of no great size counts for
MEGABYTE = 1_000_000
Opened = TypeVar("Opened")


class Shelf(Generic[Opened]):
    """Opened things by key, bounded by the bytes that they hold; the longest unused goes first.

    Args:
        size: of one thing, bytes; asked anew each time, since data is read when it is asked for.
    """

    def __init__(self, most_bytes: int, size: Callable[[Opened], int]) -> None:
        self._most_bytes = most_bytes
        self._size = size
        self._things: OrderedDict[Hashable, Opened] = OrderedDict()
        self._lock = threading.Lock()
        # how many were opened since their bytes were counted
        self._uncounted = 0

    def get(self, key: Hashable, make: Callable[[], Opened]) -> Opened:
        """Return the thing of a key, made if it is not here."""
        with self._lock:
            if key in self._things:
                self._things.move_to_end(key)
                return self._things[key]
        # outside the lock: opening one node's data does not hold up the others
        thing = make()
        with self._lock:
            thing = self._things.setdefault(key, thing)
            self._make_room()
        return thing

    def _make_room(self) -> None:
        """Let go what was used longest ago. Bytes are counted once an eighth more was opened:
        counted at each opening, thousands of nodes would take the square of their number.
        """
        self._uncounted += 1
        if 8 * self._uncounted < len(self._things):
            return
        self._uncounted = 0
        held = sum(map(self._size, self._things.values()))
        while held > self._most_bytes and len(self._things) > 1:
            _, gone = self._things.popitem(last=False)
            held -= self._size(gone)


@dataclass(frozen=True)
class Offer:
    """What a server offered, as the node's store keeps it.

    Attributes:
        agreement, preparation: JSON, as they came.
        fingerprint: of the backbone.
    """

    agreement: str
    fingerprint: str
    preparation: str

    @classmethod
    def read(cls, content: dict[str, str]) -> Offer:
        """Return the offer in a message's record or in the store."""
        return cls(content["plan"], content["fingerprint"], content["preprocess"])


@dataclass(frozen=True)
class OpenModel:
    """A plan's grafted model, its layout on the wire, and the frozen part's fingerprint.

    Attributes:
        block: examples that are trained on at once, see `step_block.py`; None: a whole batch.
    """

    model: GraftedModel
    layout: Layout
    fingerprint: str
    block: int | None = None


def find_node(context: Context) -> Path:
    """Return where a node's own file is: named by whoever started the node, never by a server."""
    if "node" in context.node_config:
        return Path(str(context.node_config["node"]))
    what = "this node was started without its file: --node-config 'node=\"/path/node.yaml\"'"
    raise Refused(Code.SETUP, what)


class Desk:
    """What one process keeps open.

        desk = Desk()
        node = desk.node(context)
        with desk.model(node, plan, offer, train, round_=1) as opened: …

    Args:
        find: context of a message → the path of its node's file.
        open_budget: what stands between a plan and a node's data; a simulation's has noise that can
            be repeated.
        most_bytes: of opened data.
    """

    def __init__(
        self,
        *,
        find: Callable[[Context], Path] = find_node,
        open_node: Callable[[Path], Node] = load_node,
        open_budget: Callable[[Node, Agreement, Split], Budget] = Budget.open,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._find = find
        self._open_node = open_node
        self._open_budget = open_budget
        self._nodes: Shelf[Node] = Shelf(most_bytes, lambda node: SMALL)
        self._agreements: Shelf[tuple[Agreement, str]] = Shelf(most_bytes, lambda pair: SMALL)
        self._splits: Shelf[tuple[Split, Split, Split]] = Shelf(most_bytes, _size_of_splits)
        self._budgets: Shelf[Budget] = Shelf(most_bytes, lambda budget: SMALL)
        self._devices: Shelf[torch.device] = Shelf(most_bytes, lambda device: SMALL)
        self._models: defaultdict[torch.device, ModelPool] = defaultdict(ModelPool)

    def node(self, context: Context) -> Node:
        """Return the node that a message is for. Raise `Refused` or `UserError` where none is."""
        path = self._find(context)
        return self._nodes.get(path, lambda: self._open_node(path))

    def agreement(self, text: str) -> tuple[Agreement, str]:
        """Return an agreement that was offered, and its hash; the same text is read once."""

        def read() -> tuple[Agreement, str]:
            agreement = agreement_from_json(text)
            return agreement, agreement_hash(agreement)

        return self._agreements.get(text, read)

    def store(self, node: Node) -> BackboneStore:
        """Return a node's store of backbones and offers."""
        if node.store_limit is None:
            return BackboneStore(node.store)
        return BackboneStore(node.store, node.store_limit * MEGABYTE)

    def device(self, node: Node) -> torch.device:
        """Return where a node's models are computed. Raise `UserError` where that is not there."""
        return self._devices.get(node.device, lambda: find_device(node.device))

    def splits(self, context: Context, offer: Offer) -> tuple[Split, Split]:
        """Return train and test split of a node's data under an agreement."""
        train, test, _ = self._all_splits(context, offer)
        return train, test

    def validation(self, context: Context, offer: Offer) -> Split:
        """Return the validation split of a node's data under an agreement."""
        _, _, validation = self._all_splits(context, offer)
        return validation

    def _all_splits(self, context: Context, offer: Offer) -> tuple[Split, Split, Split]:
        """Return train, test and validation split."""
        plan, _ = self.agreement(offer.agreement)
        node = self.node(context)
        # the backbone itself may arrive later: it is asked for when a record is prepared
        tensors = partial(self.store(node).load, offer.fingerprint)
        preparation = preparation_from_json(
            plan.backbone.name, json.loads(offer.preparation), tensors
        )
        key = (self._find(context), offer)

        def open_all() -> tuple[Split, Split, Split]:
            train, test = open_splits(node, plan, preparation)
            return train, test, open_validation(train)

        return self._splits.get(key, open_all)

    def budget(self, context: Context, offer: Offer) -> Budget:
        """Return what stands between an agreement and a node's data."""
        plan, _ = self.agreement(offer.agreement)
        node = self.node(context)
        train, _ = self.splits(context, offer)
        key = (self._find(context), offer)
        return self._budgets.get(key, lambda: self._open_budget(node, plan, train))

    @contextmanager
    def model(
        self, node: Node, plan: Agreement, offer: Offer, train: Split, round_: int
    ) -> Iterator[OpenModel]:
        """Lend a model of the agreement's in a round to one thread, on the node's device.

        Raises:
            Refused: the backbone is not in the node's store, or differential privacy cannot be had
                for this model.
            UserError: the device is not there.
        """
        device = self.device(node)

        def build() -> OpenModel:
            opened = open_model(plan, offer, self.store(node), round_)
            private = plan.privacy.mode == "sample" and plan.train.method == "steps"
            if device == CPU and not private:
                return opened
            # of its shape alone: no record is looked at
            example = train.inputs(torch.zeros(1, dtype=torch.int64))
            if private:
                probes = draw_probes(plan.task.material, train.preparation, example, 2)
                check_gradients(
                    opened.model,
                    plan.privacy.grad_sample_mode,
                    probes.joined,
                    losses_of(plan.task, plan.train),
                    TASKS[plan.task.question].probes(plan.task),
                )
            if device == CPU:
                return opened
            block = open_on_card(opened.model, device, plan, node.store, train.preparation, example)
            return replace(opened, block=block)

        # the head may be another in the last round
        key = (offer, has_depth_head(plan.train, round_))
        with self._models[device].lend(key, build) as opened:
            yield opened


class ModelPool:
    """Models of one kind, as many as threads use at once; another kind's replace them."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._free: list[OpenModel] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, key: Hashable, build: Callable[[], OpenModel]) -> Iterator[OpenModel]:
        """Lend a free model of a kind, or a new one; it is free again afterwards."""
        with self._lock:
            if self._key != key:
                self._key = key
                self._free = []
            opened = self._free.pop() if self._free else None
        if opened is None:
            opened = build()
        try:
            yield opened
        finally:
            with self._lock:
                if self._key == key:
                    self._free.append(opened)


def open_model(plan: Agreement, offer: Offer, store: BackboneStore, round_: int) -> OpenModel:
    """Build the model of an agreement in a round from the backbone in a node's store."""
    preparation = preparation_from_json(plan.backbone.name, json.loads(offer.preparation))
    state = store.load(offer.fingerprint)
    backbone = backbone_from_state(plan.backbone.name, state, preparation)
    model = working_model(backbone, plan, round_)
    layout = Layout.of(model.adapter_state(), model.drawn_state())
    return OpenModel(model, layout, model.seal_as(backbone))


def _size_of_splits(splits: tuple[Split, Split, Split]) -> int:
    return sum(split.nbytes for split in splits)
