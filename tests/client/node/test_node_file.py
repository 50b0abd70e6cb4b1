"""node.yaml: read strictly, told with line and key; the policy refuses what is not approved."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.client.node.node_file import load_node
from fedgraft.client.node.policy import Policy
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.plan.reading_section import UNDECIDED

HASH = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


def write(folder: Path, text: str) -> Path:
    path = folder / "node.yaml"
    path.write_text(text)
    return path


def test_defaults_and_paths_beside_the_file(tmp_path: Path) -> None:
    """A node started from another folder must find the same data."""
    node = load_node(
        write(tmp_path, "name: north\ndata: {path: x.npz, rows: ../rows.npz}\nstore: store\n")
    )
    assert node.data.path == str(tmp_path / "x.npz")
    assert node.data.rows == str(tmp_path.parent / "rows.npz")
    assert node.store == tmp_path / "store"
    assert (node.policy.min_examples, node.policy.report_metrics, node.threads) == (10, None, 1)


def test_absolute_paths_and_bundled_data_stay(tmp_path: Path) -> None:
    """`sklearn:digits` is a name, not a file beside node.yaml."""
    node = load_node(
        write(tmp_path, "name: n\ndata: {path: 'sklearn:digits'}\nstore: /var/lib/fedgraft\n")
    )
    assert node.data.path == "sklearn:digits"
    assert node.store == Path("/var/lib/fedgraft")


def test_all_mistakes_at_once_with_line_and_key(tmp_path: Path) -> None:
    """A misspelt policy key that is ignored is a policy that does not hold."""
    text = (
        "name: a b\ndata: {path: x.npz, format: xlsx}\nstore: s\npolicy:\n  min_exampels:"
        " 50\nthreads: 0\n"
    )
    with pytest.raises(UserError) as caught:
        load_node(write(tmp_path, text))
    told = str(caught.value)
    for words in (
        "node.yaml:1: name",
        "node.yaml:2: data.format",
        "node.yaml:5",
        "min_examples",
        "threads",
    ):
        assert words in told


@pytest.mark.parametrize("key", ["approved_backbones", "approved_plans"])
def test_an_approval_must_be_a_whole_hash(tmp_path: Path, key: str) -> None:
    """A shortened hash would match nothing, and a hospital would wonder why."""
    base = "name: n\ndata: {path: x.npz}\nstore: s\npolicy: "
    with pytest.raises(UserError, match=key):
        load_node(write(tmp_path, f"{base}{{{key}: [abcd]}}\n"))
    policy = load_node(write(tmp_path, f"{base}{{{key}: ['{HASH}']}}\n")).policy
    assert getattr(policy, key) == (HASH,)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """No traceback for a wrong path."""
    with pytest.raises(UserError, match=r"node\.yaml|cannot be read"):
        load_node(tmp_path / "node.yaml")


def test_only_approved_plans_and_backbones_run() -> None:
    """The server must not be able to run what the hospital has not approved."""
    Policy().check_approved(plan_hash=OTHER, backbone=OTHER)
    strict = Policy(approved_backbones=(HASH,), approved_plans=(HASH,))
    strict.check_approved(plan_hash=HASH, backbone=HASH)
    strict.check_approved(plan_hash=None, backbone=HASH)
    with pytest.raises(Refused, match="backbone"):
        strict.check_approved(plan_hash=HASH, backbone=OTHER)
    with pytest.raises(Refused, match="plan"):
        strict.check_approved(plan_hash=OTHER, backbone=HASH)
    with pytest.raises(Refused, match="plan"):
        Policy(approved_plans=()).check_approved(plan_hash=HASH, backbone=None)


def test_what_was_decided_about_the_data(tmp_path: Path) -> None:
    """Each decision reaches the reader; a pattern that is none is told by its line, not when a
    round begins.
    """
    data = "data: {path: x, bits: 12, leave_out: ['*_mask*'], patient_from: 'p[0-9]+'}"
    node = load_node(write(tmp_path, f"name: n\n{data}\nstore: store\n"))
    assert (node.data.reading.bits, node.data.reading.leave_out) == (12, ("*_mask*",))
    assert node.data.reading.patient_from == "p[0-9]+"
    assert load_node(write(tmp_path, "name: n\ndata: {path: x}\nstore: store\n")).data.reading == (
        UNDECIDED
    )
    for wrong, key in (("patient_from: '(p'", "patient_from"), ("bits: 17", "bits")):
        text = f"name: n\ndata:\n  path: x\n  {wrong}\nstore: store\n"
        with pytest.raises(UserError, match=key) as caught:
            load_node(write(tmp_path, text))
        assert ":4" in str(caught.value)
