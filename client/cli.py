"""`fedgraft node …`: the verbs of a hospital.

Each verb imports what it needs when it is called: `--help` and what reads one file answer at once.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgraft.common.errors import RunFailed, UserError

if TYPE_CHECKING:
    from fedgraft.client.store.chain_entry import Entry
    from fedgraft.common.files.bundle import Bundle

node = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

NodeArgument = Annotated[Path, typer.Argument(metavar="NODE", help="This hospital's node.yaml.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the plan; may be repeated."),
]


@node.callback()
def _verbs() -> None:
    """At a hospital."""


@node.command()
def check(
    file: NodeArgument,
    plan: Annotated[
        str, typer.Option(help="A plan.yaml or a ready plan's name: read the data as it would.")
    ] = "",
    set_: SetOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """See that everything is in order before the node starts: file, data, machine, network, policy.

    Exit status 1 if anything is wrong; each ✗ says what to do.

    Example: `fedgraft node check node.yaml --plan pneumonia`
    """
    from fedgraft.client.node.check import check_node
    from fedgraft.client.node.finding import print_findings
    from fedgraft.client.node.node_file import load_node
    from fedgraft.common.plan.plan_file import load_plan

    opened = load_node(file)
    findings = check_node(opened, load_plan(plan, set_ or []) if plan else None)
    problems = [finding.what for finding in findings if finding.is_wrong]
    if json_:
        listed = [finding.to_json() for finding in findings]
        _print_json({"ok": not problems, "findings": listed})
    else:
        print_findings(findings)
    if problems:
        count = f"{len(problems)} of {len(findings)} checks failed"
        raise RunFailed(f"{count}: {', '.join(problems)}")


@node.command()
def approve(
    plan: Annotated[str, typer.Argument(help="A plan.yaml, or the name of a ready plan.")],
    file: Annotated[
        Path, typer.Option("--node", metavar="NODE", help="This hospital's node.yaml.")
    ],
    set_: SetOption = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="The coordinator's .fab file, where it is not made from this release."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The model's folder or file, where the network's sizes are known from it alone and"
            " it does not lie where the plan says.",
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Who approves; default: who is logged in.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take an approval back instead.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the record as JSON; needs --yes.")
    ] = False,
) -> None:
    """Read in plain words what a plan would do here, and approve it: run this as the administrator,
    not as the node.

    Records who approved and when, and installs the code that may run, where the node's own user
    cannot write.

    Example: `sudo fedgraft node approve pneumonia --node /etc/fedgraft/node.yaml`
    """
    from fedgraft.client.node.approval_words import in_words
    from fedgraft.client.node.approvals import Approvals
    from fedgraft.client.node.approve import approve as record
    from fedgraft.client.node.approve import open_bundle, propose
    from fedgraft.client.node.node_file import load_node
    from fedgraft.common.plan.plan_file import agreement_hash, find_plan, load_plan

    if json_ and not yes:
        raise UserError("--json asks nobody", where="--json", remedy="add --yes")
    opened = load_node(file)
    # this release's own holds nobody else's code
    code = None
    if bundle is not None:
        code = open_bundle(bundle)
        _offer_code(code, yes)
    loaded = load_plan(plan, set_ or [])
    if withdraw:
        body = {"plan": agreement_hash(loaded), "name": loaded.name}
        entry = Approvals(opened.approvals).record("withdrawn", body, by)
        if json_:
            print(json.dumps(entry.body))
        else:
            print(f"✓ {loaded.name} is no longer approved; entry {entry.number}")
        return

    base = find_plan(plan).parent
    proposal = propose(opened, loaded, code, base=base, weights=weights)
    if not json_:
        print(in_words(opened, proposal) + "\n")
    if not yes and not _agrees("Approve this plan and this code for this node?"):
        raise RunFailed("not approved; nothing was changed")
    approval = record(opened, proposal, by)
    if json_:
        _print_json(approval)
        return
    journal = opened.approvals / "approvals.jsonl"
    print(f"✓ approved by {approval['by']}, entry {approval['entry']} of {journal}")
    where = "is in" if approval["installed"] else "was already in"
    print(f"✓ the code {where} {approval['folder']}")


@node.command()
def cache(
    file: Annotated[Path, typer.Argument(metavar="NODE", help="A node.yaml.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete all of it; a node at work computes it anew.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the machine-readable result.")
    ] = False,
) -> None:
    """The activations that this node keeps on disk: how many bytes, where; or delete them.

    Example: `fedgraft node cache node.yaml --purge`
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.store.activation_cache import ActivationCache

    opened = load_node(file)
    activations = ActivationCache(opened.activations_path, opened.cache.max_bytes)
    files = len(activations.files())
    size = activations.size()
    if purge:
        activations.purge()
    if json_:
        folder = str(activations.folder)
        print(json.dumps({"folder": folder, "files": files, "bytes": size, "purged": purge}))
        return
    what = "deleted" if purge else "kept"
    print(f"{what}: {files} files, {size} bytes, in {activations.folder}")


@node.command()
def start(
    file: NodeArgument,
    allow_root: Annotated[
        bool,
        typer.Option(
            "--allow-root",
            help="Start as root, whom nothing keeps from changing the approved code.",
        ),
    ] = False,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds to finish the message in hand when told to stop.")
    ] = 600,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print Flower's own lines, too.")
    ] = False,
) -> None:
    """Run this node, unattended: it reconnects for ever, and only approved code and plans run.

    Stop it with SIGTERM or Ctrl-C: it answers the message in hand first; a second time, it leaves
    at once.

    Example: `fedgraft node start node.yaml`
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.site.start_node import Running
    from fedgraft.client.site.start_node import start as run

    run(load_node(file), Running(file, drain, verbose), allow_root=allow_root)


@node.command()
def log(
    file: NodeArgument,
    last: Annotated[int, typer.Option(min=1, help="How many entries, from the end.")] = 20,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Look for entries that were changed, removed or cut off; exit 1 if any.",
        ),
    ] = False,
    head: Annotated[str, typer.Option(help="A head that was filed, to verify against.")] = "",
    json_: Annotated[bool, typer.Option("--json", help="Print the entries as JSON lines.")] = False,
) -> None:
    """The audit log: every message that came in and went out, what it held, and what was decided.
    Never data.

    Example: `fedgraft node log node.yaml --verify`
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.store.chain_entry import parse_head
    from fedgraft.client.store.journal import Journal

    path = load_node(file).audit_path
    if path is None:
        what = "this node keeps no audit log"
        raise UserError(what, where=str(file), remedy="write `audit: true`")
    journal = Journal(path)
    if not journal.segments():
        what = "no audit log here yet: no message ever came"
        raise UserError(what, where=str(path), remedy="start the node first")
    if verify:
        problems = journal.verify(parse_head(head) if head else None)
        _print_verified(path, "entry", problems, journal.head)
        return
    for entry in deque(journal.entries(), maxlen=last):
        _print_entry(entry, json_)


@node.command()
def ledger(
    file: Annotated[
        Path, typer.Argument(metavar="NODE", help="A node.yaml, or a ledger: *.sqlite.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="Print the statement as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the statement to OUT.json and OUT.md, to file it.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Look for rows that were changed, removed or cut off; exit 1 if any."
        ),
    ] = False,
    head: Annotated[
        str, typer.Option(help="The head of a filed statement, to verify against.")
    ] = "",
    release: Annotated[
        str,
        typer.Option(
            metavar="PLAN",
            help="Give back what is held for a plan's run that will not go on, by its hash;"
            " what it spent stays counted.",
        ),
    ] = "",
) -> None:
    """What was spent, reserved, held and left of the privacy budget, by data set and plan.

    Example: `fedgraft node ledger runs/digits-1/ledgers/node-0.sqlite --verify`
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.privacy.ledger import Ledger
    from fedgraft.client.privacy.spending import NO_CEILINGS, Ceilings
    from fedgraft.client.privacy.statement import markdown, statement
    from fedgraft.client.store.chain_entry import parse_head

    path = file
    ceilings = NO_CEILINGS
    if file.suffix in (".yaml", ".yml"):
        opened = load_node(file)
        path = opened.ledger_path
        policy = opened.policy
        ceilings = Ceilings(total=policy.max_epsilon_total, delta=policy.max_delta)
    if not path.is_file():
        what = "no ledger here yet: nothing was ever spent"
        raise UserError(what, where=str(path), remedy="run a private plan first")
    opened_ledger = Ledger(path)
    if release:
        hold = opened_ledger.release(release)
        print(f"✓ nothing is held any more for {hold.plan}; what it spent stays counted")
        return
    if verify:
        problems = opened_ledger.verify(parse_head(head) if head else None)
        _print_verified(path, "row", problems, lambda: opened_ledger.book().head)
        return

    stated = statement(opened_ledger, ceilings=ceilings)
    as_json = json.dumps(stated, indent=1, ensure_ascii=False)
    as_text = markdown(stated)
    if out is not None:
        out.with_suffix(".json").write_text(as_json + "\n")
        out.with_suffix(".md").write_text(as_text)
    print(as_json if json_ else as_text)


def _offer_code(bundle: Bundle, yes: bool) -> None:
    """Let a plan name the extensions of a bundle, once a person has said that their code may run.

    Raises:
        RunFailed: they said no.
    """
    import atexit
    import shutil
    import tempfile

    from fedgraft.client.node.approval_words import code_in_words
    from fedgraft.client.node.approve import unpack_extensions
    from fedgraft.common.extensions import offer_extensions

    folder = Path(tempfile.mkdtemp(prefix="fedgraft-extensions-"))
    # it is imported until the end
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folders = unpack_extensions(bundle, folder)
    if not folders:
        return
    if not yes:
        print(code_in_words(bundle, folder) + "\n")
        if not _agrees("Run this code here, to work out what the plan would do?"):
            raise RunFailed("not approved; nothing was run and nothing was changed")
    offer_extensions(folders)


def _agrees(question: str) -> bool:
    """Ask, and return whether the answer is yes: no answer, where nobody sits there, is none."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        return False


# ── what is printed ───────────────────────────────────────────────────────────────────────────────
def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _print_entry(entry: Entry, json_: bool) -> None:
    from fedgraft.client.store.audit_log import in_words

    if json_:
        line = {
            "number": entry.number,
            "kind": entry.kind,
            "time": entry.time,
            "body": entry.body,
        }
        print(json.dumps(line))
        return
    arrow = {"in": "←", "out": "→"}.get(entry.kind, " ")
    time = datetime.fromtimestamp(entry.time, UTC)
    print(f"{time:%Y-%m-%d %H:%M:%S}  {arrow}  {in_words(entry.body)}")


def _print_verified(path: Path, what: str, problems: list[str], head: Callable[[], object]) -> None:
    """Print the end of every `--verify`: the head to file. Raise `RunFailed` with what is wrong."""
    if problems:
        crossed = [f"  ✗ {problem}" for problem in problems]
        raise RunFailed("\n".join([f"{path} does not verify:", *crossed]))
    print(f"✓ {path}: every {what} is there and unchanged\nhead {head()}")
