"""The manifest: a changed byte is found and named, a signature tells who wrote it, a second run
agrees.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.server.papers.run_manifest import files_of, problems_in, read_manifest, sign, signer
from fedgraft.simulations.engines.engine import EngineOptions
from fedgraft.simulations.reproduce import list_failures, reproduce, verify_manifest
from fedgraft.simulations.simulate import SimulationOptions, simulate_plan

PRIVATE = "privacy={mode: sample, target_epsilon: 8, delta: 1e-3}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished private run, with its page, its ledgers and a signature by `key.pem`. Tests copy
    it.
    """
    from tests.simulations.conftest import PLAN, write_table

    place = tmp_path_factory.mktemp("manifest")
    for number, name in enumerate(("north.csv", "south.csv")):
        write_table(place / name, 60, number)
    (place / "plan.yaml").write_text(PLAN.replace("FILES", "north.csv, south.csv"))
    simulate_plan(
        str(place / "plan.yaml"),
        overrides=[PRIVATE],
        out=place / "run",
        options=SimulationOptions(EngineOptions(workers=1), quiet=True),
    )
    for name in ("key", "other"):
        words = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(place / f"{name}.pem")]
        subprocess.run(words, check=True, capture_output=True)
        words = [
            "openssl",
            "pkey",
            "-in",
            str(place / f"{name}.pem"),
            "-pubout",
            "-out",
            str(place / f"{name}.pub"),
        ]
        subprocess.run(words, check=True, capture_output=True)
    sign(place / "run", place / "key.pem")
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "place"
    shutil.copytree(finished, copy)
    return copy


def test_a_whole_folder_has_no_problems(place):
    """A manifest that does not fit what it was just written for."""
    assert problems_in(place / "run") == problems_in(place / "run", place / "key.pub") == []
    kinds = {Path(name).suffix for name, _ in files_of(place / "run")}
    assert kinds >= {
        ".yaml",
        ".json",
        ".jsonl",
        ".safetensors",
        ".md",
        ".html",
        ".png",
        ".sqlite",
        ".head",
    }


def test_a_flipped_byte_in_any_file_is_named(place):
    """A kind of file that nobody hashed; a change that is found but not told where."""
    run = place / "run"
    names = [name for name, _ in files_of(run)]
    assert len(names) > 15
    for name in [*names, "manifest.json", "manifest.sig"]:
        path = run / name
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            found = problems_in(run)
            assert any(problem.startswith(f"{name}:") for problem in found), (name, at, found)
            if name not in ("manifest.json", "manifest.sig"):
                assert len(found) == 1
        path.write_bytes(whole)
    assert problems_in(run) == []


def test_every_byte_of_the_manifest_and_its_signature_counts(place):
    """Bytes that can be changed unseen: spaces, letters of a number written in two ways."""
    run = place / "run"
    for name in ("manifest.json", "manifest.sig"):
        path = run / name
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 150)):
            for bit in (1, 0x20):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
                assert problems_in(run), (name, at, bit)
        path.write_bytes(whole)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_change_of_any_file_is_found_and_named(place, data):
    """A change that nobody thought of: bytes flipped, put in, cut off, or those of another file of
    the folder.
    """
    run = place / "run"
    names = [*(name for name, _ in files_of(run)), "manifest.json", "manifest.sig"]
    name, other = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    path, whole = run / name, (run / name).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    match data.draw(st.sampled_from(("flip", "put in", "cut off", "another's", "gone"))):
        case "flip":
            changed = (
                whole[:at]
                + bytes(byte ^ data.draw(st.integers(1, 255)) for byte in whole[at : at + 1])
                + whole[at + 1 :]
            )
        case "put in":
            changed = whole[:at] + data.draw(st.binary(min_size=1, max_size=20)) + whole[at:]
        case "cut off":
            changed = whole[:at]
        case "another's":
            changed = (run / other).read_bytes()
        case _:
            changed = None
    try:
        path.unlink() if changed is None else path.write_bytes(changed)
        if changed is None and name == "manifest.json":
            with pytest.raises(UserError, match="no manifest"):
                problems_in(run)
            return
        found = problems_in(run, place / "key.pub")
        assert any(problem.startswith(f"{name}:") for problem in found) == (changed != whole), (
            name,
            found,
        )
    finally:
        path.write_bytes(whole)


def test_files_that_came_or_went_are_named(place):
    """A page added beside the run, or a checkpoint that vanished."""
    (place / "run" / "addendum.md").write_text("all is well")
    (place / "run" / "metrics.jsonl").unlink()
    assert problems_in(place / "run") == [
        "metrics.jsonl: missing",
        "addendum.md: came after the manifest was written",
    ]
    with pytest.raises(RunFailed, match=r"metrics\.jsonl"):
        verify_manifest(place / "run", None)


def test_a_manifest_written_anew_needs_a_new_signature(place):
    """Results changed together with their manifest, under the old signature or another's."""
    run = place / "run"
    assert str(signer(run)) in verify_manifest(run, place / "key.pub")
    sign(run, place / "other.pem")
    assert problems_in(run) == []
    (problem,) = problems_in(run, place / "key.pub")
    assert "another key" in problem
    (run / "manifest.sig").unlink()
    assert problems_in(run) == []
    assert problems_in(run, place / "key.pub") == ["manifest.sig: missing: nobody signed"]


@pytest.mark.parametrize(
    ("key", "word"), [("gone.pem", "cannot be read"), ("plan.yaml", "no private key")]
)
def test_keys_that_are_none(place, key, word):
    with pytest.raises(UserError, match=word) as raised:
        sign(place / "run", place / key)
    assert "openssl" in raised.value.remedy


def test_what_does_not_hold_is_not_signed(place):
    """A signature that vouches for a changed result."""
    (place / "run" / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"result\.json"):
        sign(place / "run", place / "key.pem")


def test_it_says_what_the_run_was_made_of(place):
    """A manifest from which nobody could repeat the run."""
    content = read_manifest(place / "run")
    result = json.loads((place / "run" / "result.json").read_text())
    assert content["plan"] == result["plan_hash"]
    assert set(content["data"]["files"]) == {"north.csv", "south.csv"}
    assert all(value.startswith("sha256:") for value in content["data"]["fingerprints"].values())
    assert {"torch", "opacus", "flwr", "numpy"} <= set(content["packages"])
    assert {"server/papers/run_manifest.py", "client/privacy/dp_sgd.py"} <= set(
        content["code"]["files"]
    )
    assert content["results"]["final"] == result["final"]
    for node, entry in content["ledger"].items():
        assert entry["history"] == result["privacy"][node]["history"]
        assert (
            entry["head"] == (place / "run" / "ledgers" / f"{node}.sqlite.head").read_text().strip()
        )


@pytest.mark.slow
def test_a_second_run_agrees_and_other_data_does_not(place):
    """A repetition that always says yes, or one that differs by itself."""
    checks = reproduce(place / "run", workers=1, quiet=True)
    assert list_failures(checks) == []
    assert {check.what for check in checks} >= {
        "files",
        "code",
        "data",
        "privacy",
        "shared model",
        "metrics",
    }

    rows = (place / "north.csv").read_text().splitlines()
    (place / "north.csv").write_text("\n".join([rows[0], *rows[2:]]) + "\n")
    wrong = {check.what for check in list_failures(reproduce(place / "run", workers=1, quiet=True))}
    assert {"data", "shared model", "metrics"} <= wrong

    (place / "run" / "plan.yaml").write_text("name: other\n")
    (only,) = reproduce(place / "run", workers=1, quiet=True)
    assert (only.what, only.agrees) == ("files", False)
