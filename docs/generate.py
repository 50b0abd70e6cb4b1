"""Make the pages that the code says itself, so that no copy of it can drift: a hook of mkdocs.

Commands come from the command's own parser, keys from the models that check them, the hospital's
guide from deploy/RUNBOOK.md; the rest of the site is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, get_type_hints

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from pydantic import BaseModel

from fedgraft.cli import app
from fedgraft.client.node.node_file import Node
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_keys import Key, describe_keys
from fedgraft.server.site.server_file import Server

ROOT = Path(__file__).parents[1]
EXAMPLE = "Example: "

COMMANDS_INTRO = """\
# Commands

For whoever types them: every command with its options, as `--help` shows them.

Exit status 0: done. 1: the run failed. 2: the input is wrong, and one message says which file, key
and value, and what to write instead. `--json` prints the machine-readable result.
"""
PLAN_INTRO = """\
# Keys of a plan

For whoever writes or approves a plan: every key of `plan.yaml`, its default and what it means.
`fedgraft validate --keys PLAN` prints the same. A value can be changed for one run with
`--set key=value`, in Python with `set={"key": value}`.

What a hospital approves is all of it but `simulation`, `pretrain`, `train.threads` and
`backbone.weights`.
"""
NODE_INTRO = """\
# Keys of node.yaml

For the hospital's engineer: every key of a node's own file. The file is never sent, and no server
can loosen its `policy`. An [example with every key](#an-example-with-every-key) is below, and so is
the coordinator's [server.yaml](#the-coordinators-serveryaml).
"""
# what lets the search work from a folder: the theme's, and ours
FOREIGN_SHIM = "https://unpkg.com/iframe-worker/shim"
SHIM = "assets/search-from-a-folder.js"
# pages that are written elsewhere, and for whom they are
AUDIENCES = {
    "adr": "For whoever reviews or changes this guarantee.",
    "results.md": "For whoever asks what it brings, what it costs and how fast it is.",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made of code and of texts elsewhere in the repository."""
    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Say under the title of a page that is written elsewhere for whom it is."""
    name = page.file.src_uri
    key = name.rpartition("/")[0] or name
    if key not in AUDIENCES or name == "adr/index.md":
        return markdown
    title, _newline, text = markdown.partition("\n")
    return f"{title}\n\n*{AUDIENCES[key]}*\n{text}"


def on_post_page(output: str, *, page: Page, **_: Any) -> str:
    """Take the one script that the theme would fetch from elsewhere from this site."""
    here = get_relative_url(SHIM, page.url)
    return output.replace(FOREIGN_SHIM, here)


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same for pages without a text, such as the one that says that there is none."""
    return output_content.replace(FOREIGN_SHIM, f"/{SHIM}")


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────
def write_plan_keys() -> str:
    """Return the page of a plan's keys."""
    return PLAN_INTRO + "\n" + list_keys(Plan)


def write_node_keys() -> str:
    """Return the page of a node's keys, with the example, and of the server's."""
    example = (ROOT / "deploy" / "node.example.yaml").read_text()
    server_example = (ROOT / "deploy" / "server.example.yaml").read_text()
    parts = [
        NODE_INTRO,
        list_keys(Node),
        f"## An example with every key\n\n```yaml\n{example}```\n",
        "## The coordinator's server.yaml\n",
        list_keys(Server, level=0),
        f"```yaml\n{server_example}```\n",
    ]
    return "\n".join(parts)


def list_keys(model: type[BaseModel], level: int = 2) -> str:
    """Return a list of a model's keys: those at the top, then a section for each group at the top,
    if sections have a level.
    """
    keys = describe_keys(model)
    if not level:
        return "\n".join(map(describe_key, keys))
    groups = [key.key for key in keys if is_group(key)]
    lines = [describe_key(key) for key in keys if key.key.partition(".")[0] not in groups]
    for key in keys:
        if is_group(key):
            lines.append(f"{'#' * level} {key.key}\n\n{escape(key.description)}\n")
        elif key.key.partition(".")[0] in groups:
            lines.append(describe_key(key))
    return "\n".join(lines)


def is_group(key: Key) -> bool:
    """Return whether a key is a group of keys at the top of the file."""
    return key.type.startswith("group") and "." not in key.key


def describe_key(key: Key) -> str:
    """Return an entry of a list of definitions."""
    facts = key.type.replace(" | ", " or ").replace("list of group", "list of groups of keys")
    if key.default:
        facts += f", default `{key.default}`"
    elif not key.type.startswith("group"):
        facts += ", required"
    return f"`{key.key}` <small>{facts}</small>\n:   {escape(key.description)}\n"


# ── commands ──────────────────────────────────────────────────────────────────────────────────────
def write_commands() -> str:
    """Return the page of all commands."""
    parts = [COMMANDS_INTRO]
    for name, command in walk(typer.main.get_command(app), "fedgraft"):
        parts.append(describe_command(name, command))
    return "\n".join(parts)


def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Give every command that does something, with its full name."""
    commands: Mapping[str, click.Command] = getattr(command, "commands", {})
    if not commands:
        yield name, command
    for below, inner in commands.items():
        yield from walk(inner, f"{name} {below}")


def describe_command(name: str, command: click.Command) -> str:
    """Return a command's section: what it does, an example, arguments and options."""
    text, examples = part_help(command.help or "")
    parts = [f"## {name}\n", text, f"```sh\n{examples or name}\n```\n"]
    for parameter in command.params:
        if parameter.name != "help":
            parts.append(describe_parameter(parameter, command))
    return "\n".join(parts)


def part_help(text: str) -> tuple[str, str]:
    """Return a help text without its example, and the example's commands, a line each."""
    paragraphs: list[str] = []
    examples = ""
    for paragraph in text.split("\n\n"):
        joined = " ".join(paragraph.split())
        if joined.startswith(EXAMPLE):
            commands = joined.removeprefix(EXAMPLE).split("`")[1::2]
            examples = "\n".join(commands)
        else:
            paragraphs.append(joined + "\n")
    return "\n".join(paragraphs), examples


def describe_parameter(parameter: click.Parameter, command: click.Command) -> str:
    """Return an entry of a list of definitions."""
    metavar = parameter.make_metavar(click.Context(command))
    names = metavar
    if isinstance(parameter, click.Option):
        names = ", ".join(parameter.opts)
        if not parameter.is_flag:
            names += f" {metavar.removesuffix(' RANGE')}"
    facts = ""
    if isinstance(parameter.default, str | int | float | Path) and parameter.default:
        facts = f" <small>default `{parameter.default}`</small>"
    return f"`{names}`{facts}\n:   {help_of(parameter, command)}\n"


def help_of(parameter: click.Parameter, command: click.Command) -> str:
    """Return a parameter's help out of its annotation: with click 8.5 typer's arguments lose it."""
    hints = get_type_hints(command.callback, include_extras=True)
    for described in getattr(hints[str(parameter.name)], "__metadata__", ()):
        if getattr(described, "help", None):
            return described.help
    return ""


# ── texts from elsewhere in the repository ────────────────────────────────────────────────────────
def write_guide() -> str:
    """Return the hospital's guide: the runbook, as it is."""
    return (ROOT / "deploy" / "RUNBOOK.md").read_text()


def write_contributing() -> str:
    """Return CONTRIBUTING.md, as it is."""
    return (ROOT / "CONTRIBUTING.md").read_text()


def write_changes() -> str:
    """Return CHANGELOG.md, as it is."""
    return (ROOT / "CHANGELOG.md").read_text()


def write_decisions() -> str:
    """Return the list of decisions, by their titles."""
    lines = [
        "# Decisions\n",
        "For whoever reviews or changes a guarantee: the decisions behind it, each with its"
        " context and what follows from it.\n",
    ]
    for file in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")):
        title = file.read_text().partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({file.name})")
    return "\n".join(lines) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "adr/index.md": write_decisions,
    "changelog.md": write_changes,
    "commands.md": write_commands,
    "contributing.md": write_contributing,
    "hospital.md": write_guide,
    "node-keys.md": write_node_keys,
    "plan-keys.md": write_plan_keys,
}
