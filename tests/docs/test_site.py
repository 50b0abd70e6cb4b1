"""The documentation site builds without a warning, fetches nothing when it is read, and has every
key and every command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from fedgraft.cli import app
from fedgraft.client.node.node_file import Node
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_keys import describe_keys

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder


class Fetched(HTMLParser):
    """What a browser fetches by itself with a page: not what a reader may click."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag != "a":
            self.addresses += [named[key] or "" for key in ("src", "href") if key in named]


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """A hospital reads it offline, and nobody learns that it does."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = Fetched()
        fetched.feed(page.read_text())
        foreign = [address for address in fetched.addresses if re.match(r"(https?:)?//", address)]
        assert not foreign, f"{page.name}: {foreign}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", style.read_text()), style.name


@pytest.mark.parametrize(("page", "model"), [("plan-keys", Plan), ("node-keys", Node)])
def test_every_key_is_there(site: Path, page: str, model: type) -> None:
    """A key that is not described is found by nobody."""
    text = (site / f"{page}.html").read_text()
    for key in describe_keys(model):
        # a group at the top is a heading
        assert f"<code>{key.key}</code>" in text or f'id="{key.key}"' in text, key.key


def test_every_command_is_there(site: Path) -> None:
    """Nested ones too, each with help for all that it takes."""
    text = (site / "commands.html").read_text()
    command = typer.main.get_command(app)
    for name in getattr(command, "commands", {}):
        assert f">fedgraft {name}" in text, name
    assert 'id="fedgraft-server-nodes-add"' in text
    assert not re.search(r"<dd>\s*</dd>|^:   $", text, re.MULTILINE)
