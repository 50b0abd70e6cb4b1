"""`fedgraft node …`: the verbs of a hospital."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.errors import RunFailed, UserError

node = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@node.callback()
def _verbs() -> None:
    """At a hospital."""


@node.command()
def ledger(
    file: Annotated[Path, typer.Argument(metavar="NODE", help="A node.yaml, or a ledger: *.sqlite.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the statement as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the statement to OUT.json and OUT.md, to file it.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Look for rows that were changed, removed or cut off; exit 1 if any.")
    ] = False,
    head: Annotated[str, typer.Option(help="The head of a filed statement, to verify against.")] = "",
) -> None:
    """What was spent, reserved and left of the privacy budget, by data set and plan.

    Example: `fedgraft node ledger runs/digits-1/ledgers/node-0.sqlite --verify`
    """
    from client.chain import head as head_of
    from client.ledger import Ceilings, Ledger
    from client.node import load_node
    from client.statement import markdown, statement

    ceilings, path = Ceilings(), file
    if file.suffix in (".yaml", ".yml"):
        opened = load_node(file)
        path = opened.ledger_path
        ceilings = Ceilings(total=opened.policy.max_epsilon_total, delta=opened.policy.max_delta)
    if not path.is_file():
        raise UserError(
            "no ledger here yet: nothing was ever spent", where=str(path), remedy="run a private plan first"
        )
    kept = Ledger(path)
    if verify:
        problems = kept.verify(head_of(head) if head else None)
        if problems:
            raise RunFailed(f"{path} does not verify:\n" + "\n".join(f"  ✗ {problem}" for problem in problems))
        print(f"✓ {path}: every row is there and unchanged\nhead {kept.book().head}")
        return
    stated = statement(kept, ceilings=ceilings)
    if out is not None:
        out.with_suffix(".json").write_text(json.dumps(stated, indent=1, ensure_ascii=False) + "\n")
        out.with_suffix(".md").write_text(markdown(stated))
    print(json.dumps(stated, indent=1, ensure_ascii=False) if json_ else markdown(stated))
