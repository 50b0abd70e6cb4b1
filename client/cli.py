"""`fedgraft node …`: the verbs of a hospital."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.common.errors import RunFailed, UserError

node = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@node.callback()
def _verbs() -> None:
    """At a hospital."""


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the plan; may be repeated."),
]
NodeArgument = Annotated[Path, typer.Argument(metavar="NODE", help="This hospital's node.yaml.")]


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
    from fedgraft.client.node.finding import table
    from fedgraft.client.node.node_file import load_node
    from fedgraft.common.plan.plan_file import load_plan

    found = check_node(load_node(file), load_plan(plan, set_ or []) if plan else None)
    bad = [finding for finding in found if finding.state == "wrong"]
    if json_:
        print(
            json.dumps(
                {"ok": not bad, "findings": [finding.to_json() for finding in found]}, indent=1
            )
        )
    else:
        table(found)
    if bad:
        raise RunFailed(
            f"{len(bad)} of {len(found)} checks failed:"
            f" {', '.join(finding.what for finding in bad)}"
        )


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
    from fedgraft.client.node.approvals import Approvals
    from fedgraft.client.node.approve import approve as record
    from fedgraft.client.node.approve import in_words, propose
    from fedgraft.client.node.node_file import load_node
    from fedgraft.common.plan.plan_file import agreement_hash, load_plan

    if json_ and not yes:
        raise UserError("--json asks nobody", where="--json", remedy="add --yes")
    opened, wanted = load_node(file), load_plan(plan, set_ or [])
    if withdraw:
        entry = Approvals(opened.approvals).record(
            "withdrawn", {"plan": agreement_hash(wanted), "name": wanted.name}, by
        )
        print(
            json.dumps(entry.body)
            if json_
            else f"✓ {wanted.name} is no longer approved; entry {entry.number}"
        )
        return
    proposal = propose(opened, wanted, bundle)
    if not json_:
        print(in_words(opened, proposal) + "\n")
    if not yes and not typer.confirm("Approve this plan and this code for this node?"):
        raise RunFailed("not approved; nothing was changed")
    done = record(opened, proposal, by)
    if json_:
        print(json.dumps(done, indent=1, ensure_ascii=False))
        return
    print(
        f"✓ approved by {done['by']}, entry {done['entry']} of"
        f" {opened.approvals / 'approvals.jsonl'}"
    )
    print(f"✓ the code {'is in' if done['installed'] else 'was already in'} {done['folder']}")


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
    kept = ActivationCache(opened.activations_path, opened.cache.max_bytes)
    files, size = len(kept.files()), kept.size()
    if purge:
        kept.purge()
    if json_:
        print(
            json.dumps({"folder": str(kept.folder), "files": files, "bytes": size, "purged": purge})
        )
    else:
        print(f"{'deleted' if purge else 'kept'}: {files} files, {size} bytes, in {kept.folder}")


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
    from fedgraft.client.site.start_node import start as run

    run(load_node(file), file, allow_root=allow_root, drain=drain, verbose=verbose)


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
    from collections import deque
    from datetime import UTC, datetime

    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.store.audit_log import in_words
    from fedgraft.client.store.chain_entry import parse_head
    from fedgraft.client.store.journal import Journal

    path = load_node(file).audit_path
    if path is None:
        raise UserError(
            "this node keeps no audit log", where=str(file), remedy="write `audit: true`"
        )
    journal = Journal(path)
    if not journal.segments():
        raise UserError(
            "no audit log here yet: no message ever came",
            where=str(path),
            remedy="start the node first",
        )
    if verify:
        _verified(path, "entry", journal.verify(parse_head(head) if head else None), journal.head)
        return
    for entry in deque(journal.entries(), maxlen=last):
        if json_:
            print(
                json.dumps(
                    {
                        "number": entry.number,
                        "kind": entry.kind,
                        "time": entry.time,
                        "body": entry.body,
                    }
                )
            )
        else:
            arrow = {"in": "←", "out": "→"}.get(entry.kind, " ")
            print(
                f"{datetime.fromtimestamp(entry.time, UTC):%Y-%m-%d %H:%M:%S}  {arrow} "
                f" {in_words(entry.body)}"
            )


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
) -> None:
    """What was spent, reserved and left of the privacy budget, by data set and plan.

    Example: `fedgraft node ledger runs/digits-1/ledgers/node-0.sqlite --verify`
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.privacy.ledger import Ledger
    from fedgraft.client.privacy.spending import Ceilings
    from fedgraft.client.privacy.statement import markdown, statement
    from fedgraft.client.store.chain_entry import parse_head

    ceilings, path = Ceilings(), file
    if file.suffix in (".yaml", ".yml"):
        opened = load_node(file)
        path = opened.ledger_path
        ceilings = Ceilings(total=opened.policy.max_epsilon_total, delta=opened.policy.max_delta)
    if not path.is_file():
        raise UserError(
            "no ledger here yet: nothing was ever spent",
            where=str(path),
            remedy="run a private plan first",
        )
    kept = Ledger(path)
    if verify:
        _verified(
            path, "row", kept.verify(parse_head(head) if head else None), lambda: kept.book().head
        )
        return
    stated = statement(kept, ceilings=ceilings)
    if out is not None:
        out.with_suffix(".json").write_text(json.dumps(stated, indent=1, ensure_ascii=False) + "\n")
        out.with_suffix(".md").write_text(markdown(stated))
    print(json.dumps(stated, indent=1, ensure_ascii=False) if json_ else markdown(stated))


def _verified(path: Path, what: str, problems: list[str], head: Callable[[], object]) -> None:
    """The end of every `--verify`: what is wrong, or the head to file."""
    if problems:
        raise RunFailed(
            f"{path} does not verify:\n" + "\n".join(f"  ✗ {problem}" for problem in problems)
        )
    print(f"✓ {path}: every {what} is there and unchanged\nhead {head()}")
