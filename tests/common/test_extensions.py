"""Code of others on the seams: by name from what a person gave, and never by a path of a plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common import extensions, registry
from fedgraft.common.adapters.bias import BIAS
from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.extensions import load_extension, offer_extension, register
from fedgraft.common.files.bundle import build_bundle, contents_of, extensions_in, unpacked
from fedgraft.common.plan.plan_file import agreement_from_json, agreement_hash, canonical, load_plan
from fedgraft.common.plan.plan_file import agreement_of as agreed

EXAMPLES = Path(__file__).parents[2] / "examples"
METHOD = """
import fedgraft
from fedgraft.common.adapters.bias import BIAS

fedgraft.register("method", "{name}", BIAS)
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing offered, loaded or added by another test."""
    monkeypatch.setattr(extensions, "_offered", {})
    monkeypatch.setattr(extensions, "_loaded", {})
    monkeypatch.setattr(registry, "_ADDED", {})


def write(folder: Path, name: str, code: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return folder / name


def test_a_plan_uses_the_words_of_an_extension(tmp_path: Path) -> None:
    """A word that a plan cannot use though its extension registers it, or can without."""
    sets = ["adapter={method: ours}"]
    with pytest.raises(UserErrors, match=r"found 'ours'; 'head'"):
        load_plan("digits", sets)
    offer_extension(write(tmp_path, "ours", METHOD.format(name="ours")))
    plan = load_plan("digits", [*sets, "extensions=[ours]"])
    assert plan.adapter.method == "ours"
    assert plan.extensions[0].hash == load_extension("ours")


def test_the_agreement_holds_the_hash(tmp_path: Path) -> None:
    """A hospital that approves a name and gets other code."""
    folder = write(tmp_path, "ours", METHOD.format(name="ours"))
    offer_extension(folder)
    plan = load_plan("digits", ["extensions=[ours]"])
    text = canonical(agreed(plan))
    assert agreement_hash(agreement_from_json(text)) == agreement_hash(plan)
    assert agreement_hash(plan) != agreement_hash(load_plan("digits"))

    (folder / "__init__.py").write_text("")
    with pytest.raises(UserError, match=r"was changed since this process imported it"):
        agreement_from_json(text)
    extensions._loaded.clear()
    with pytest.raises(UserError, match=r"and the plan was made with sha256"):
        agreement_from_json(text)


@given(
    name=st.one_of(
        st.sampled_from(
            ["../evil", "/tmp/evil", "evil.py", "a/b", "os", "", ".", "EVIL", "a" * 99]
        ),
        st.text(max_size=30),
    )
)
def test_no_name_of_a_plan_becomes_a_path(name: str) -> None:
    """A plan of a stranger that imports a module of this machine."""
    with pytest.raises(UserError, match=r"no extension is called|found"):
        load_plan("digits", [f"extensions={json.dumps([{'name': name}])}"])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name", r"ModuleNotFoundError(.|\n)*__init__.py, line 1"),
        ("\n1 / 0", "ZeroDivisionError(.|\n)*line 2"),
        ("def f(:", "SyntaxError"),
        ("import fedgraft\nfedgraft.register('famly', 'x', None)", "there is no seam 'famly'"),
        ("import fedgraft\nfedgraft.register('family', 'x', None)", "material is missing"),
        (
            "import fedgraft\nfedgraft.register('method', 'x', None, fast=True)",
            "'fast' is nothing that a plan must know",
        ),
    ],
)
def test_code_that_fails_is_told_in_a_sentence(tmp_path: Path, code: str, said: str) -> None:
    """A traceback, or a module half imported that the next plan takes for whole."""
    folder = write(tmp_path, "broken", code)
    offer_extension(folder)
    for _ in range(2):
        with pytest.raises(UserError, match=said):
            load_plan("digits", ["extensions=[broken]"])
    (folder / "__init__.py").write_text(METHOD.format(name="mended"))
    plan = load_plan("digits", ["extensions=[broken]", "adapter={method: mended}"])
    assert plan.adapter.method == "mended"


def test_what_is_no_source_is_no_extension(tmp_path: Path) -> None:
    """A bundle with a binary, a link or a file that Flower's unpacking never sees."""
    with pytest.raises(UserError, match="no extension lies here"):
        offer_extension(tmp_path / "gone")
    folder = write(tmp_path, "ours", "")
    (folder / "weights.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match="no Python source"):
        offer_extension(folder)
    (folder / "weights.bin").unlink()
    (folder / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="no Python source"):
        offer_extension(folder)
    with pytest.raises(UserError, match="is no name of an extension"):
        offer_extension(write(tmp_path, "Our-Code", ""))


def test_a_bundle_holds_what_was_offered(tmp_path: Path) -> None:
    """A bundle of the same release without extensions that has another hash for their sake, or one
    with them whose extension has another hash than the plan's.
    """
    plain = build_bundle()
    assert extensions_in(unpacked(plain)) == {}
    folder = tmp_path / "own_network"
    shutil.copytree(EXAMPLES / "own_network", folder, ignore=shutil.ignore_patterns("__pycache__"))
    offer_extension(folder)
    bundle = build_bundle(extensions=extensions.read_offered())
    held = extensions_in(unpacked(bundle))
    assert set(held) == {"own_network"}
    assert contents_of(held["own_network"]) == load_extension("own_network")
    assert build_bundle().hash == plain.hash


def test_names_of_fedgraft_stay_its_own() -> None:
    """An extension that puts itself in the place of `lora`, or takes torchvision's names."""
    register("method", "lora", BIAS)
    from fedgraft.common.adapters import METHODS

    assert METHODS["lora"].name == "lora"
    register("family", "ours", object(), material="image")
    from fedgraft.common.backbones import family_name

    assert family_name("ours") == family_name("ours/large") == "ours"
    assert family_name("resnet18") == "torchvision"
    assert family_name("ours2") == "torchvision"
    for name in ("Ours", "a b", "", "-x", "x/y"):
        with pytest.raises(UserError, match="is no name"):
            register("family", name, object(), material="image")
    with pytest.raises(UserError, match="one word"):
        register("input", "two-words", object())
