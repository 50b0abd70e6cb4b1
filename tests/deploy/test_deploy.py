"""deploy/: the examples are complete and valid, the units and charts hold what the runbook
promises.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from fedgraft.client.node.node_file import Node, load_node
from fedgraft.common.plan.plan_keys import describe_keys
from fedgraft.server.site.server_file import Server, load_server

DEPLOY = Path(__file__).parents[2] / "deploy"
EXAMPLES = [("node.example.yaml", Node, load_node), ("server.example.yaml", Server, load_server)]
UNITS = ["fedgraft-node.service", "fedgraft-server.service"]


def keys_of(model: type[BaseModel]) -> set[str]:
    return {key.key for key in describe_keys(model)}


def switched_on(text: str, model: type[BaseModel]) -> str:
    """The example with every key set: `# ` is taken away before a key."""
    names = {key.rpartition(".")[2] for key in keys_of(model)}
    return re.sub(
        r"(?m)^( *)# ( *(\w+):.*)$", lambda m: m[1] + m[2] if m[3] in names else m[0], text
    )


def paths(data: Any, prefix: str = "") -> set[str]:
    if not isinstance(data, dict):
        return set()
    return {prefix + key for key in data} | {
        p for key, value in data.items() for p in paths(value, f"{prefix}{key}.")
    }


@pytest.mark.parametrize(("name", "model", "load"), EXAMPLES, ids=["node", "server"])
def test_an_example_is_valid_and_has_every_key(
    name: str, model: type[BaseModel], load: Any, tmp_path: Path
) -> None:
    """An example that no longer loads costs a hospital its first hour; a key that it lacks is found
    by nobody.
    """
    text = (DEPLOY / name).read_text()
    load(DEPLOY / name)
    full = tmp_path / "full.yaml"
    full.write_text(switched_on(text, model))
    load(full)
    assert paths(yaml.safe_load(full.read_text())) == keys_of(model)


@pytest.mark.parametrize(
    ("name", "model"), [example[:2] for example in EXAMPLES], ids=["node", "server"]
)
def test_defaults_that_an_example_shows_are_the_defaults(name: str, model: type[BaseModel]) -> None:
    """A commented key in the example says what holds without it, or the example would be believed
    and be wrong.
    """
    text = (DEPLOY / name).read_text()
    full, plain = yaml.safe_load(switched_on(text, model)), yaml.safe_load(text)
    shown = paths(full) - paths(plain)
    defaults = {key.key: yaml.safe_load(key.default) for key in describe_keys(model) if key.default}
    optional = {key for key, value in defaults.items() if value is None}
    for key in (
        shown - optional - {"policy.dp_required", "threads"}
    ):  # off by default; shown switched on
        value: Any = full
        for step in key.split("."):
            value = value[step]
        if key in defaults:
            assert value == defaults[key], key


# ── systemd ───────────────────────────────────────────────────────────────────────────────────────


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(DEPLOY / "systemd" / name)
    return parser["Service"]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_walled_in(name: str) -> None:
    """Each line that is lost is a right that nobody meant to give."""
    service = unit(name)
    assert service["User"] not in ("", "root")
    for key in (
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectHome",
        "RestrictNamespaces",
    ):
        assert service[key] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["RestartPreventExitStatus"] == "2"  # the command's status for wrong input
    assert service["Restart"] == "always"


def test_a_node_waits_longer_than_its_key_is_refused() -> None:
    """A SuperLink holds the key of a node that died for up to 60 s; a drain takes up to ten
    minutes.
    """
    service = unit("fedgraft-node.service")
    assert int(service["RestartSec"]) >= 65
    assert int(service["TimeoutStopSec"]) > 600


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    """A misspelt directive is ignored at start, and the wall that it names is not there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (
        (DEPLOY / "systemd" / name).read_text().replace("/opt/fedgraft/bin/fedgraft", "/bin/true")
    )
    (tmp_path / name).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", tmp_path / name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert rated.returncode == 0, rated.stdout[-200:]


# ── containers ────────────────────────────────────────────────────────────────────────────────────


def test_containers_are_walled_in() -> None:
    """Root in a container is root over what is mounted; a node that publishes a port is
    reachable.
    """
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert len(compose["services"]) == 4
    for name, service in compose["services"].items():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "ports" not in service
        for volume in service["volumes"]:
            assert volume.endswith(":ro") or ":/var/lib/fedgraft" in volume, (name, volume)


def test_compose_reads_its_file() -> None:
    """A key that compose does not know is an error at the first `up`."""
    words = next(
        (
            words
            for words in (["docker", "compose"], ["docker-compose"])
            if shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True, check=False).returncode
            == 0
        ),
        None,
    )
    if words is None:
        pytest.skip("docker compose is not installed: compose.yaml was not read by it")
    done = subprocess.run(
        [*words, "--file", DEPLOY / "compose.yaml", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_image_runs_as_a_user_and_checks_itself_by_our_command() -> None:
    """The last USER holds; each target has the health check of its room, with verbs that exist."""
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"(?m)^USER (.*)$", text) == ["10001:10001"]
    assert "--constraint constraints.txt" in text
    for stage in ("node", "server"):
        body = text.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
        assert "HEALTHCHECK" in body
        for command in re.findall(r"CMD (\[.*\])", body):
            words = yaml.safe_load(command)
            must_parse(words if words[0] == "fedgraft" else ["fedgraft", *words])
    copied = {
        name for line in re.findall(r"(?m)^COPY ([^-].*)$", text) for name in line.split()[:-1]
    }
    assert all((DEPLOY.parent / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert all(f"!{name}" in ignored for name in copied)


# ── Kubernetes ────────────────────────────────────────────────────────────────────────────────────


def test_the_chart_uses_the_values_that_it_has() -> None:
    """A template asking for a value that is misspelt renders nothing, without a word."""
    chart = DEPLOY / "helm" / "fedgraft"
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["name"] == "fedgraft"
    values = paths(yaml.safe_load((chart / "values.yaml").read_text()))
    text = "".join(path.read_text() for path in (chart / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", text))
    assert used <= values
    leaves = {key for key in values if not any(other.startswith(f"{key}.") for other in values)}
    covered = {
        key for key in leaves if any(key == name or key.startswith(f"{name}.") for name in used)
    }
    assert leaves == covered
    for words in (
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "drop: [ALL]",
        "replicas: 1 ",
    ):
        assert words in text


# ── the runbook ───────────────────────────────────────────────────────────────────────────────────


def must_parse(words: list[str]) -> None:
    """Whether the command line has these verbs and options; click raises where it has not."""
    import typer

    from fedgraft.cli import app

    command: Any = typer.main.get_command(app)
    context, rest = command.make_context("fedgraft", words[1:], resilient_parsing=False), words[1:]
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)


def commands(text: str) -> list[list[str]]:
    """Every `fedgraft …` of the runbook's indented blocks, also behind `runuser` and `docker
    compose exec`.
    """
    found = []
    for line in re.findall(r"(?m)^ {4}(.*)$", text.replace("\\\n", " ")):
        line = re.sub(r"\$\(.*?\)|\$\{?\w+\}?", "x", line)
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a line of a file that is shown
            continue
        if words and words[0] in ("runuser", "kubectl") and "--" in words:
            words = words[words.index("--") + 1 :]
        if "fedgraft" in words and words[0] in ("fedgraft", "docker"):
            found.append(words[words.index("fedgraft") :])
    return found


def test_the_runbooks_commands_exist() -> None:
    """At three in the morning, an option that was renamed last month."""
    found = commands((DEPLOY / "RUNBOOK.md").read_text())
    assert len(found) > 20
    for words in found:
        must_parse(words)


def test_the_runbook_names_files_that_exist() -> None:
    """And a file that has moved."""
    text = (DEPLOY / "RUNBOOK.md").read_text()
    for name in set(re.findall(r"\bdeploy/[\w./-]*\w", text)):
        assert (DEPLOY.parent / name).exists(), name
