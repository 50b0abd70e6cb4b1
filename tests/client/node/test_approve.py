"""Only what a person approved runs: the record, the installed code, and the door that a bundle
comes through.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approvals import Approvals, check_approved
from fedgraft.client.node.approve import approve, propose
from fedgraft.client.node.node_file import Node, load_node
from fedgraft.client.site import launcher
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.files.bundle import Bundle, build_bundle, read_bundle, unpacked
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.plan.plan_file import agreement_hash, load_plan
from fedgraft.common.wire.layout import Layout
from tests.huggingface_folders import write_folder

BUNDLE = build_bundle()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    file = tmp_path / "node.yaml"
    file.write_text(
        "name: hospital\ndata: {path: data.npz}\nstore: store\npolicy: {approved_plans: recorded}\n"
    )
    return load_node(file)


@pytest.fixture
def approvals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Approvals:
    approvals = Approvals(tmp_path / "approvals")
    approvals.install(BUNDLE, "tester")
    monkeypatch.setenv(launcher.APPROVALS, str(approvals.folder))
    return approvals


def packed(
    change: dict[str, bytes] | None = None, *, compression: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """The bundle's files, some changed, packed as Flower packs them but for the compression."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in (unpacked(BUNDLE) | (change or {})).items():
            archive.writestr(name, content)
    return made.getvalue()


# ── plans ─────────────────────────────────────────────────────────────────────────────────────────
def test_a_plan_runs_only_after_a_person_approved_it_and_until_they_withdraw(node: Node) -> None:
    plan = load_plan("pneumonia")
    with pytest.raises(Refused, match=f"plan {agreement_hash(plan)} is not approved"):
        check_approved(node, plan_hash=agreement_hash(plan), backbone=None)
    done = approve(node, propose(node, plan, None), "Dr. A")
    check_approved(node, plan_hash=agreement_hash(plan), backbone=None)
    with pytest.raises(Refused):
        check_approved(
            node, plan_hash=agreement_hash(load_plan("pneumonia", ["seed=8"])), backbone=None
        )
    assert done["by"] == "Dr. A"
    Approvals(node.approvals).record("withdrawn", {"plan": agreement_hash(plan)}, "Dr. A")
    with pytest.raises(Refused):
        check_approved(node, plan_hash=agreement_hash(plan), backbone=None)


def test_a_record_that_was_tampered_with_approves_nothing(node: Node) -> None:
    plan = load_plan("pneumonia")
    approve(node, propose(node, plan, None), "Dr. A")
    record = node.approvals / "approvals.jsonl"
    record.write_text(record.read_text().replace("Dr. A", "Dr. B"))
    with pytest.raises(Refused, match="does not verify"):
        check_approved(node, plan_hash=agreement_hash(plan), backbone=None)


def test_the_words_say_what_leaves(node: Node) -> None:
    """50,778 values: LoRA of rank 8 on every convolution of a ResNet-20 and a head for two classes
    (DESIGN.md).
    """
    words = in_words(node, propose(node, load_plan("pneumonia"), None))
    assert "50,778 numbers in 40 tensors, 203 kB" in words
    assert (
        "layer3.2.conv2.adapter.lora_A.weight  8 × 64 × 3 × 3  18.4 kB" in words
    )  # 4 · 8 · 64 · 9 bytes
    assert BUNDLE.hash in words
    private = load_plan("pneumonia", ["privacy={mode: sample, target_epsilon: 3, delta: 1.0e-4}"])
    words = in_words(node, propose(node, private, None))
    assert "ε at most 3 for the whole run at δ = 0.0001; it hides a single record" in words
    assert "no metrics" in words


def test_a_network_that_its_folder_describes(node: Node, tmp_path: Path) -> None:
    """A plan of a Hugging Face model that nobody can approve: its sizes stand in its folder."""
    write_folder(tmp_path / "model")
    written = """
        name: letters
        task: {kind: text-classification, classes: [a, b], text: text, target: label}
        backbone: {name: huggingface, weights: ./model, max_length: 12}
        adapter: {method: lora, rank: 2}
    """
    (tmp_path / "plan.yaml").write_text(textwrap.dedent(written))
    plan = load_plan(tmp_path / "plan.yaml")
    proposal = propose(node, plan, base=tmp_path)
    model = plan_model(plan_backbone(plan, tmp_path), plan)
    assert proposal.layout == Layout.of(model.adapter_state())
    # the hospital keeps the model somewhere else
    (tmp_path / "model").rename(tmp_path / "downloaded")
    with pytest.raises(UserError, match="model"):
        propose(node, plan, base=tmp_path)
    elsewhere = propose(node, plan, base=tmp_path, weights=str(tmp_path / "downloaded"))
    assert elsewhere.layout == proposal.layout
    other = load_plan(tmp_path / "plan.yaml", [f"backbone.fingerprint=sha256:{'0' * 64}"])
    with pytest.raises(UserError, match="fingerprint"):
        propose(node, other, base=tmp_path, weights=str(tmp_path / "downloaded"))


def test_the_words_tell_rounds_of_sums_from_rounds_of_steps(node: Node) -> None:
    """Sums that are not announced, or a solved head's tensors in place of what steps send."""
    phases = ["train.start=closed-form", "train.finish=closed-form"]
    words = in_words(node, propose(node, load_plan("pneumonia", phases), None))
    assert "18 of 20 rounds are training" in words
    assert "after each round of training 50,778 numbers in 40 tensors, 203 kB; 3.7 MB" in words
    assert "in round 1: sums over the training records of 64 features" in words
    assert "in round 20: sums over the training records of 352 features" in words
    private = ["privacy.mode=sample", "privacy.target_epsilon=1", "train.finish=closed-form"]
    words = in_words(node, propose(node, load_plan("pneumonia", private), None))
    assert "in round 20: sums of 352 features by class, and counts of classes, with noise" in words
    assert "in round 1:" not in words


def test_the_words_say_that_places_of_a_record_are_no_records(node: Node, tmp_path: Path) -> None:
    """A person who reads of norms and records would take the pixels for them, or the image."""
    plan = {
        "name": "cells",
        "task": {"kind": "image-segmentation", "classes": ["background", "cell"]},
        "backbone": {"name": "cifar-resnet8", "image_size": 16},
        "adapter": {"method": "head"},
        "train": {"method": "closed-form"},
        "privacy": {"mode": "sample", "target_epsilon": 3, "delta": 1e-3},
    }
    (tmp_path / "cells.json").write_text(json.dumps(plan))
    words = in_words(node, propose(node, load_plan(tmp_path / "cells.json"), None))
    assert "features by class, over the places of images" in words
    assert "the places of a record, of norm 1 each, share its weight; sums are noised here" in words
    assert "ε at most 3 for the whole run at δ = 0.001; it hides a single record" in words


def test_the_words_tell_of_validation_records(node: Node) -> None:
    """Records that do not train after all, and looks at them, which nobody was told of."""
    plain = in_words(node, propose(node, load_plan("pneumonia"), None))
    assert "validation" not in plain
    sets = ["evaluate.validation_fraction=0.2", "train.keep=best", "train.patience=3"]
    words = in_words(node, propose(node, load_plan("pneumonia", sets), None))
    assert "20% of the training records are kept out of training" in words
    assert "after each round the same sums over the validation records" in words
    assert "at most 20 rounds" in words
    silent = node.model_copy(
        update={"policy": node.policy.model_copy(update={"report_metrics": False})}
    )
    words = in_words(silent, propose(silent, load_plan("pneumonia", sets), None))
    assert "nothing of validation records" in words


def test_the_words_say_how_few_records_are_too_few(node: Node) -> None:
    """A floor of 10 that looks like protection; ε that is said to need one."""
    plain = in_words(node, propose(node, load_plan("pneumonia-one-round"), None))
    assert "of fewer than 704 records (twice the features)" in plain
    assert "this node takes part from 10 records on (min_examples)" in plain
    private = load_plan("pneumonia-one-round", ["privacy={mode: sample, target_epsilon: 1}"])
    assert "fewer than" not in in_words(node, propose(node, private, None))


# ── code ──────────────────────────────────────────────────────────────────────────────────────────
def test_the_approved_bundle_is_let_in_however_it_was_packed(approvals: Approvals) -> None:
    """Another zlib gives other bytes of the same code; Flower's own name for it is another one
    then.
    """
    folder = approvals.folder / "apps" / BUNDLE.folder
    assert launcher.check_bundle(BUNDLE.data, skip_prompt=True) == folder
    assert launcher.check_bundle(packed(compression=zipfile.ZIP_STORED)) == folder
    assert launcher.installed_contents(folder) == BUNDLE.contents
    assert list(folder.rglob("*.pyc")), (
        "compiled once: the node's user cannot keep what it compiles"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"client/round.py": unpacked(BUNDLE)["client/round.py"] + b"#"},
        {"client/extra.py": b""},
        {"sitecustomize.py": b"print('hello')"},
        {
            "pyproject.toml": (
                unpacked(BUNDLE)["pyproject.toml"].replace(b"0.1.0", b"0.1.0/../../../store/x")
            )
        },
    ],
)
def test_one_other_byte_is_refused_in_words(approvals: Approvals, change: dict[str, bytes]) -> None:
    with pytest.raises(launcher.BundleRefused, match="is not approved at this node"):
        launcher.check_bundle(packed(change))


@pytest.mark.parametrize("data", [b"", b"PK", BUNDLE.data[:-30], BUNDLE.data + b"x" * 10])
def test_what_is_no_bundle_is_refused(approvals: Approvals, data: bytes) -> None:
    if data.startswith(
        BUNDLE.data
    ):  # trailing bytes: the same code in another file, which zip readers take
        launcher.check_bundle(data)
    else:
        with pytest.raises(launcher.BundleRefused):
            launcher.check_bundle(data)


def test_installed_code_that_was_changed_is_not_run(approvals: Approvals) -> None:
    victim = approvals.folder / "apps" / BUNDLE.folder / "client" / "round.py"
    victim.write_bytes(victim.read_bytes() + b"#")
    with pytest.raises(launcher.BundleRefused, match="changed or removed"):
        launcher.check_bundle(BUNDLE.data)
    assert approvals.install(BUNDLE, "tester"), "approving again puts it right"
    launcher.check_bundle(BUNDLE.data)


def test_nothing_approved_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launcher.APPROVALS, str(tmp_path))
    with pytest.raises(launcher.BundleRefused, match="no code was ever approved"):
        launcher.check_bundle(BUNDLE.data)


def test_a_new_release_replaces_the_old_one(approvals: Approvals) -> None:
    changed = packed({"client/round.py": unpacked(BUNDLE)["client/round.py"] + b"#"})
    archive = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(changed)) as old, zipfile.ZipFile(archive, "w") as new:
        import hashlib

        for name in old.namelist():
            new.writestr(name, old.read(name))
        lines = [
            f"{name},{hashlib.sha256(old.read(name)).hexdigest()},0" for name in old.namelist()
        ]
        new.writestr(".info/CONTENT", "\n".join(lines))
    later: Bundle = read_bundle(archive.getvalue())
    approvals.install(later, "tester")
    assert [folder.name for folder in (approvals.folder / "apps").iterdir()] == [later.folder]
    with pytest.raises(launcher.BundleRefused):
        launcher.check_bundle(BUNDLE.data)
    assert [entry.kind for entry in approvals.journal.entries()] == ["bundle", "bundle"]


def test_flower_still_has_what_the_launcher_replaces() -> None:
    """Another Flower might unpack the bundle by another way; then nothing may run."""
    import importlib
    import inspect

    process = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    source = inspect.getsource(process.run_clientapp)
    for name in (
        "install_from_fab(fab.content",
        "get_project_dir(run.fab_id",
        "get_load_client_app_fn(",
    ):
        assert name in source


# ── the node's own user ───────────────────────────────────────────────────────────────────────────
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="needs root, to drop its rights for good",
)
def test_the_nodes_user_cannot_change_what_was_approved(approvals: Approvals, node: Node) -> None:
    """A process without CAP_DAC_OVERRIDE before another owner's files: as the node before the
    administrator's.
    """
    for place in [approvals.folder, *approvals.folder.rglob("*")]:
        os.chown(place, 65534, 65534)
    script = textwrap.dedent("""
        import json, sys
        from pathlib import Path
        from fedgraft.client.node.approvals import Approvals, check_approved
        from fedgraft.common.files.bundle import build_bundle
        from fedgraft.common.errors import UserError
        approvals, told = Approvals(Path(sys.argv[1])), {}
        told["reads"] = approvals.bundle()["hash"]
        told["writable"] = [str(place) for place in approvals.writable()]
        for name, act in {
            "record": lambda: approvals.record("plan", {"plan": "sha256:0"}),
            "install": lambda: approvals.install(build_bundle(Path(sys.argv[2])), "me"),
            "write": lambda: (approvals.folder / "bundle.json").write_text("{}"),
        }.items():
            try:
                act()
                told[name] = "done"
            except (UserError, OSError) as error:
                told[name] = str(error)
        print(json.dumps(told))
    """)
    altered = node.store.parent / "altered"
    for name, content in unpacked(BUNDLE).items():
        (altered / name).parent.mkdir(parents=True, exist_ok=True)
        (altered / name).write_bytes(content + (b"#" if name == "client/round.py" else b""))
    dropped = "-dac_override,-dac_read_search,-fowner,-chown,-setuid,-setgid"
    done = subprocess.run(
        [
            "setpriv",
            "--bounding-set",
            dropped,
            "--inh-caps",
            "-all",
            sys.executable,
            "-c",
            script,
            str(approvals.folder),
            str(altered),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    told = json.loads(done.stdout)
    assert told["reads"] == BUNDLE.hash
    assert told["writable"] == []
    for act in ("record", "install", "write"):
        assert "ermission denied" in told[act] or "not permitted" in told[act], told
    launcher.check_bundle(BUNDLE.data)


def test_who_may_not_write_is_told_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match="cannot be installed: Permission denied") as told:
        Approvals(node.approvals).install(BUNDLE, "me")
    assert "administrator" in told.value.remedy
