"""`fedgraft study`, `report`, `manifest` and `reproduce` as people type them: what they say, how
they end.
"""

from __future__ import annotations

import json
import subprocess

import pytest

STUDY = """
name: small
question: Does the rank matter?
plan: plan.yaml
set: {train.rounds: 1}
grid: {adapter.rank: [1, 2]}
seeds: [3]
attacks: [loss-threshold]
show: {x: adapter.rank}
"""


@pytest.mark.slow
def test_from_a_question_to_a_signed_answer_that_can_be_repeated(place, command):
    """A step of the way that does not fit the next, or a tampered number that passes."""
    (place / "study.yaml").write_text(STUDY)
    done = command("study", "study.yaml", "--out", "answer", "--workers", "1")
    assert done.code == 0, done.err
    assert "2 cells, 2 of them run now" in done.out
    again = command("study", "study.yaml", "--out", "answer", "--workers", "1", "--json")
    assert json.loads(again.out)["run"] == 0
    page = (place / "answer" / "report.html").read_bytes()
    assert command("report", "answer").code == 0
    assert (place / "answer" / "report.html").read_bytes() == page

    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "key.pem"],
        check=True,
        capture_output=True,
    )
    assert command("manifest", "answer", "--sign", "key.pem").code == 0
    holds = command("manifest", "answer", "--verify")
    assert holds.code == 0
    assert "signed with" in holds.out
    repeated = command("reproduce", "answer/manifest.json", "--workers", "1", "--json")
    assert repeated.code == 0, repeated.err
    checks = {check["what"].split(": ")[-1]: check["agrees"] for check in json.loads(repeated.out)}
    assert checks["shared model"]
    assert checks["loss-threshold"]

    table = place / "answer" / "table.csv"
    table.write_text(table.read_text().replace("0.", "0.9", 1))
    for words in (("manifest", "answer", "--verify"), ("reproduce", "answer/manifest.json")):
        broken = command(*words)
        assert broken.code == 1
        assert "table.csv" in broken.out + broken.err
        assert "Traceback" not in broken.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("study", "membershp"), "membership"),
        (("study", "study.yaml"), "study.yaml:6"),
        (("study", "small.yaml", "--engine", "spark"), "inprocess"),
        (("reproduce", "."), "manifest"),
        (("manifest", "nowhere", "--verify"), "manifest.json"),
        (("report", "."), "no cell is finished"),
    ],
)
def test_what_is_wrong_is_told_and_exits_2(place, command, words, said):
    """A traceback, or a message without a remedy."""
    (place / "study.yaml").write_text(STUDY.replace("adapter.rank: [1, 2]", "adapter.rnak: [1, 2]"))
    (place / "small.yaml").write_text(STUDY)
    done = command(*words)
    assert done.code == 2, done
    assert said in done.err
    assert "→" in done.err
    assert "Traceback" not in done.err
    assert not (place / "runs").exists()


@pytest.mark.slow
def test_a_deployment_s_run_gets_a_manifest_that_can_be_verified_only(place, command):
    """A coordinator who cannot file a run, or a repetition that fails with a traceback."""
    assert command("simulate", "plan.yaml", "--out", "run").code == 0
    (place / "run" / "manifest.json").unlink()  # as a deployment leaves its folder
    assert command("manifest", "run", "--verify").code == 2
    assert command("manifest", "run").code == 0
    assert command("manifest", "run", "--verify").code == 0
    again = command("reproduce", "run")
    assert again.code == 2
    assert "--verify" in again.err
