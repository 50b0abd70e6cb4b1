"""The plan's `extensions`: code of others that it needs, by name, and the hash of what was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from fedgraft.common.errors import UserError
from fedgraft.common.extensions import load_extension
from fedgraft.common.files.bundle import EXTENSION_NAME
from fedgraft.common.plan.section import Section

MOST = 20


class ExtensionSection(Section):
    """Code that is no part of fedgraft; a plan names it, and never where it lies."""

    name: Annotated[str, Field(pattern=rf"^{EXTENSION_NAME}$")] = Field(
        description="as its folder is called"
    )
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        default=None, description="over its sources (default: of those that are here)"
    )


Extensions = Annotated[tuple[ExtensionSection, ...], Field(max_length=MOST)]


def load_extensions(data: Any, where: str) -> Any:
    """Import the extensions that a plan's data names, so that the plan may use their words, and
    return the data with their hashes. What names none is left to the plan's own validation.

    Raises:
        UserError: there is no such extension here, it fails, or it has another hash.
    """
    named: Any = None
    if isinstance(data, Mapping):
        named = data.get("extensions")
    if not isinstance(named, list) or len(named) > MOST:
        return data
    return {**data, "extensions": [_load(item, where) for item in named]}


def _load(item: Any, where: str) -> Any:
    """Return a plan's word for one extension with its hash."""
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        return item
    try:
        here = load_extension(item["name"])
    except UserError as error:
        what = f"extensions: {error.what}"
        if error.where:
            what += f" ({error.where})"
        raise UserError(what, where=where, remedy=error.remedy) from None
    planned = item.get("hash")
    if planned not in (None, here):
        what = f"extensions: {item['name']} is {here} here, and the plan was made with {planned}"
        raise UserError(what, where=where, remedy="take the code that the plan was made with")
    return {**item, "hash": here}
