"""A small GPT-2 and its tokenizer, made of the texts of some sites: what `fedgraft pretrain` does
for a plan of kind `text-generation`.

The texts, prompt and answer, stand one after another with the token between that ends each; a step
looks at windows of that row, so every token is learnt from, however long its text. Sites that the
federation has are refused: their tests would be of texts that were seen.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.data.data_set import DataSource, Records, open_records
from fedgraft.client.data.split import Split
from fedgraft.client.training.local_steps import build_optimizer, evaluate
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.huggingface_folder import TOKENIZER_FILE
from fedgraft.common.backbones.huggingface_library import import_library
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import DEFAULT_LENGTH
from fedgraft.common.model.grafted_model import graft
from fedgraft.common.model.token_features import TokenChoice
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.language_section import LanguageSection
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_hash
from fedgraft.common.plan.pretrain_section import PretrainSection
from fedgraft.common.plan.reading_section import UNDECIDED
from fedgraft.common.tasks.answer_sums import AnswerSums, zero
from fedgraft.common.tasks.answer_tokens import END

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROVENANCE = "provenance.json"
# part of the steps in which the learning rate rises
WARM_UP = 0.05
# of the norm of a step's gradient (Radford et al. 2019 and all since)
MAX_NORM = 1.0
NO_LANGUAGE = (
    "add `pretrain: {data: [FILE, …], epochs: 10, language: {tokens: 2048, layers: 4, width: 128,"
    " heads: 4}}` and backbone.weights: ./FOLDER"
)


def pretrain_language(plan: Plan, plan_path: Path) -> dict[str, Any]:
    """Make the plan's language model of the texts of its sources and keep it as a folder of
    Hugging Face's.

    Returns:
        Where it lies, its fingerprint, its perplexity on answers that were held out, and its
        provenance.

    Raises:
        UserError: no `pretrain` section, data that is missing, or a node's.
    """
    section = plan.pretrain
    if section is None or section.language is None:
        what = "says nothing of how to make its language model"
        raise UserError(what, where=f"{plan_path}: pretrain", remedy=NO_LANGUAGE)
    folder = Path(plan.backbone.weights or "")
    torch.set_num_threads(plan.train.threads)
    sources = open_sources(plan, section, plan_path)
    texts = read_split(sources, "train")
    length = plan.backbone.max_length or DEFAULT_LENGTH

    tokenizer = train_tokenizer(texts, section.language)
    row = join_texts(tokenizer, texts)
    network = train_network(section, row, length, tokenizer.get_vocab_size())

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    import_library().utils.logging.disable_progress_bar()
    network.save_pretrained(part)
    tokenizer.save(str(part / TOKENIZER_FILE))
    backbone = load_backbone(plan.backbone.name, weights=f"{part}/", max_length=length)
    held_out = measure_held_out(plan, backbone, sources)
    provenance = {
        "made_by": "fedgraft pretrain",
        "plan": plan.name,
        "plan_hash": plan_hash(plan),
        "data": list(section.files),
        "data_fingerprints": [records.fingerprint for records in sources],
        "examples": len(texts),
        "tokens": len(row),
        "held_out_examples": held_out.examples,
        "held_out_perplexity": held_out.summary()["perplexity"],
        "epochs": section.epochs,
        "seed": section.seed,
        "versions": {name: version(name) for name in ("fedgraft", "torch", "transformers")},
    }
    (part / PROVENANCE).write_text(json.dumps(provenance, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return {
        "path": str(folder),
        "fingerprint": backbone.fingerprint,
        "accuracy": None,
        "perplexity": held_out.summary()["perplexity"],
        "reference": None,
        "provenance": provenance,
    }


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────
def open_sources(plan: Plan, section: PretrainSection, plan_path: Path) -> list[Records]:
    """Return the records of each source. Raise `UserError` for a file that is a node's."""
    reading = UNDECIDED
    patient = None
    nodes: set[Path] = set()
    if plan.simulation is not None:
        reading = plan.simulation.reading
        patient = plan.simulation.patient
        nodes = {resolve(name, plan_path.parent).resolve() for name in plan.simulation.files}
    sources: list[Records] = []
    for name in section.files:
        path = resolve(name, plan_path.parent)
        if path.resolve() in nodes:
            remedy = "learn beforehand from other sites than those of the federation"
            raise UserError("a node's file", where=f"pretrain.data: {name}", remedy=remedy)
        data = DataSource(path, reading=reading, patient=patient)
        sources.append(open_records(data, plan.task, plan.seed))
    return sources


def read_split(sources: Sequence[Records], split: str) -> list[str]:
    """Return the texts of one split of all sources."""
    texts: list[str] = []
    for records in sources:
        texts += records.read(records.splits[split])
    return texts


def train_tokenizer(texts: Sequence[str], language: LanguageSection) -> Tokenizer:
    """Return a tokenizer of bytes that are merged where they are often side by side (Sennrich et
    al. 2016; over bytes Radford et al. 2019).
    """
    import_library()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=language.tokens,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def join_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Return the tokens of all texts in one row, int64, each text with its end."""
    end = tokenizer.token_to_id(END)
    numbers: list[int] = []
    for text in texts:
        numbers += [*tokenizer.encode(text).ids, end]
    return torch.tensor(numbers)


# ── the network ───────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Windows:
    """Windows of a row of tokens, begun elsewhere in each epoch.

    for batch in Windows(row, length=128, size=32).shuffle(generator):
        batch.shape  # (32, 128)
    """

    row: Tensor
    length: int
    size: int

    @property
    def count(self) -> int:
        """Return how many batches an epoch has."""
        return max(1, (len(self.row) // self.length) // self.size)

    def shuffle(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the batches of one epoch `(size, length)`; the row is a ring."""
        begin = int(torch.randint(self.length, (), generator=generator))
        windows = max(1, len(self.row) // self.length)
        order = torch.randperm(windows, generator=generator)
        within = torch.arange(self.length)
        for number in range(self.count):
            starts = order[number * self.size : (number + 1) * self.size] * self.length + begin
            yield self.row[(starts[:, None] + within) % len(self.row)]


def train_network(section: PretrainSection, row: Tensor, length: int, tokens: int) -> Any:
    """Return a GPT-2 of the library's that was trained to tell the next token of a row.

    Args:
        length: tokens that it can read.
        tokens: that there are.
    """
    language = section.language
    assert language is not None
    library = import_library()
    config = library.GPT2Config(
        vocab_size=tokens,
        n_positions=length,
        n_embd=language.width,
        n_layer=language.layers,
        n_head=language.heads,
        # as gelu_new in exact arithmetic, in a third of the time
        activation_function="gelu_pytorch_tanh",
        # few passes over little text: there is nothing to forget
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    generator = torch.Generator().manual_seed(section.seed)
    windows = Windows(row, length, section.batch_size)
    steps = section.epochs * windows.count
    # initial values are drawn from the global random state here, and nowhere later
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        network = library.GPT2LMHeadModel(config).train()
        optimizer = build_optimizer(network, section.optimizer, section.optimizer.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rise_and_fall(step, steps)
        )
        for _ in range(section.epochs):
            for batch in windows.shuffle(generator):
                logits = network(input_ids=batch).logits
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
                optimizer.step()
                schedule.step()
    return network.eval()


def rise_and_fall(step: int, steps: int) -> float:
    """Return the part of the learning rate that a step has: it rises evenly, then falls by half a
    cosine to 0.
    """
    rise = max(1, int(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def measure_held_out(plan: Plan, backbone: Backbone, sources: Sequence[Records]) -> AnswerSums:
    """Return the sums of the answers that were held out at all sources."""
    example = backbone.preprocess(["a"]).joined
    choice = TokenChoice(example, of_vocabulary=True)
    model = graft(backbone, method="head", classes=1, depths=choice)
    total = zero()
    for records in sources:
        split = Split(records, records.splits["test"], backbone.preprocess)
        total = total + evaluate(model, split, plan.task)
    return total
