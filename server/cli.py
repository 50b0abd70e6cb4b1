"""`fedgraft server …`: the verbs of a coordinator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgraft.common.extensions import offer_extensions
from fedgraft.common.tasks import task_line

server = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
nodes = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
server.add_typer(nodes, name="nodes", help="Which hospitals may take part.")

ServerOption = Annotated[
    Path, typer.Option("--server", metavar="FILE", help="The server's own file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")]
ExpectedOption = Annotated[
    int | None,
    typer.Option(
        "--nodes", min=1, help="Nodes to wait for, two minutes at most; default: all registered."
    ),
]
WithOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        metavar="DIR",
        help="Code of your own that the plan's `extensions` name; may be repeated.",
        callback=offer_extensions,
    ),
]
HERE = Path("server.yaml")
NOTES = {
    "ca.crt": "give it to every hospital",
    "ca.key": "take it offline: who has it can pose as the server",
    "server.key": "stays on this host",
}


@server.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("certificates"),
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A DNS name or IP address under which hospitals reach the server; may be repeated."
        ),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Make a node's key pair; may be repeated.")
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=825, help="How long the server's certificate is valid.")
    ] = 365,
    json_: JsonOption = False,
) -> None:
    """Make a private CA, the server's certificate, and key pairs of nodes. Nothing is overwritten.

    Example: `fedgraft server certificates certificates --host fl.example.org --host 192.0.2.10
        --node hospital-a`
    """
    from fedgraft.server.site.certificates import make_certificates

    written = make_certificates(folder, hosts=host or [], nodes=node or [], days=days)
    if json_:
        _print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        print(f"{path!s:<36} {_note(path)}".rstrip())


def _note(path: Path) -> str:
    """Return what to do with a file of `certificates`."""
    if path.parent.name == "nodes":
        if path.suffix == ".pub":
            return "register it: fedgraft server nodes add"
        return "goes to that hospital alone"
    return NOTES.get(path.name, "")


@server.command()
def start(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The server's own file.")] = HERE,
) -> None:
    """Run the coordinator's processes until SIGTERM or Ctrl-C: SuperLink, SuperExec and the
    hospitals' gateway.

    Example: `fedgraft server start server.yaml`
    """
    from fedgraft.server.site.server_file import load_server
    from fedgraft.server.site.start_server import start as run

    run(load_server(file), file)


@server.command()
def run(
    plan: Annotated[str, typer.Argument(help="A plan.yaml, or the name of a ready plan.")],
    file: ServerOption = HERE,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; default RUNS/NAME-TIME.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the plan; may be repeated."
        ),
    ] = None,
    expected: ExpectedOption = None,
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Run a plan over the hospitals' nodes and wait for its end. Ctrl-C stops the run.

    Example: `fedgraft server run pneumonia --server server.yaml --set train.rounds=5`
    """
    from fedgraft.server.site.server_file import load_server
    from fedgraft.server.site.submit_run import run as submit

    result = submit(
        load_server(file), plan, overrides=set_ or [], out=out, expected=expected, quiet=json_
    )
    _print_result(result, json_)


@server.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The folder of a run that was cut off.")],
    file: ServerOption = HERE,
    expected: ExpectedOption = None,
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Go on with a run that was cut off, from its last finished round.

    Example: `fedgraft server resume runs/pneumonia-20261124-101500`
    """
    from fedgraft.server.site.server_file import load_server
    from fedgraft.server.site.submit_run import resume as go_on

    _print_result(go_on(load_server(file), run, expected=expected, quiet=json_), json_)


@server.command()
def bundle(
    out: Annotated[Path, typer.Option(help="The folder to write it to.")] = Path(),
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Write the code that runs at hospitals as one .fab file, with code of your own where `--with`
    names some: hospitals read it and approve it (`fedgraft node approve --bundle`).

    A plan names its extensions; `server run --with` sends those that its plan names. A hospital
    that runs this release makes the bundle without extensions by itself.

    Example: `fedgraft server bundle --with ./our_network --out bundles`
    """
    from fedgraft.server.site.write_bundle import write_bundle

    written = write_bundle(out)
    if json_:
        _print_json(written)
        return
    print(written["file"])
    print(f"bundle    {written['hash']}")
    for name, identity in written["extensions"].items():
        print(f"extension {name} {identity}")


@nodes.command()
def add(
    name: Annotated[str, typer.Argument(help="The hospital's name.")],
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="Its public key.")],
    file: ServerOption = HERE,
    json_: JsonOption = False,
) -> None:
    """Register a node's public key: from now on it may take part.

    Example: `fedgraft server nodes add hospital-a certificates/nodes/hospital-a.pub`
    """
    from fedgraft.server.site.nodes import add as register
    from fedgraft.server.site.server_file import load_server

    added = register(load_server(file), name, key)
    if json_:
        _print_json(added)
    else:
        print(f"{name} is registered: id {added['id']}, key {added['key']}")


@nodes.command("list")
def list_(file: ServerOption = HERE, json_: JsonOption = False) -> None:
    """Every registered node, and whether it is connected.

    Example: `fedgraft server nodes list`
    """
    from fedgraft.server.site.nodes import list_nodes
    from fedgraft.server.site.server_file import load_server

    rows = list_nodes(load_server(file))
    if json_:
        _print_json({"nodes": rows})
    elif rows:
        _print_nodes(rows)
    else:
        print("no node is registered yet: fedgraft server nodes add NAME KEY.pub")


@nodes.command()
def remove(
    name: Annotated[str, typer.Argument(help="The hospital's name.")],
    file: ServerOption = HERE,
    json_: JsonOption = False,
) -> None:
    """Unregister a node: its key is refused from now on, and for ever.

    Example: `fedgraft server nodes remove hospital-a`
    """
    from fedgraft.server.site.nodes import remove as unregister
    from fedgraft.server.site.server_file import load_server

    removed = unregister(load_server(file), name)
    if json_:
        _print_json(removed)
    else:
        print(f"{name} is removed: id {removed['id']}, key {removed['key']}")


def _print_result(result: dict[str, Any], json_: bool) -> None:
    if json_:
        _print_json(result)
        return
    final = result["final"]["global"]
    metrics = []
    for key in task_line(result["question"]).metrics[:2]:
        if final.get(key) is not None:
            metrics.append(f"{key} {final[key]:.3f}")
    rounds = f"{result['rounds_done']} rounds"
    nodes = f"{len(result['final']['nodes'])} nodes"
    print(f"completed: {rounds}, {nodes}, {', '.join(metrics) or 'not measured'}")
    for row in result["refused"]:
        print(f"  left out: {row['node']}, round {row['round']}: {row['reason']}")
    print(result["folder"])


def _print_nodes(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "status", "since")
    table.add_column("id", no_wrap=True)
    table.add_column("key", overflow="fold")
    for row in rows:
        cells = (row["name"], row["status"], row["since"], row["id"], row["key"])
        table.add_row(*map(escape, cells))
    Console().print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
