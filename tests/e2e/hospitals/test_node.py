"""What holds at a hospital, whatever the server sends: approved code only, all of it written down,
no needless rights.

The nodes are those of the shared federation, and one more that runs as `nobody` where this machine
allows it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.client.node.approvals import Approvals
from fedgraft.client.node.node_file import load_node
from fedgraft.client.site import launcher
from fedgraft.client.site.network import check_connection
from fedgraft.common.files.bundle import write_app
from fedgraft.server.site import nodes as registry
from fedgraft.server.site.certificates import make_certificates
from fedgraft.server.site.start_server import connect
from fedgraft.simulations.deployment.administrator import NOBODY
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
ROOT = Path(__file__).resolve().parents[3]
QUICK = ("train.rounds=1", "adapter.method=head")


def test_root_is_refused(federation: LocalFederation) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    done = federation.fedgraft("node", "start", federation.files["north"])
    assert done.code == 2
    assert "running as root" in done.err


def test_the_preflight_finds_the_key_registered(
    federation: LocalFederation, tmp_path: Path
) -> None:
    """Asked while the node runs under the same key, which must go on undisturbed."""
    connection = load_node(federation.files["north"]).connection
    assert connection is not None
    found = {finding.what: finding for finding in check_connection(connection)}
    assert (found["node key"].state, found["clock"].state) == ("ok", "ok"), found
    stranger = tmp_path / "stranger.key"
    stranger.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    stranger.chmod(0o600)
    found = {
        finding.what: finding
        for finding in check_connection(
            connection.model_copy(update={"private_key": str(stranger)})
        )
    }
    assert "does not know it" in found["node key"].detail


def one_byte(app: Path, mark: Path, approved: str) -> None:
    """One byte more than what was approved."""
    (app / "client" / "round.py").open("a").write("#")


def escape(app: Path, mark: Path, approved: str) -> None:
    """A version that leads Flower's installer out of the read-only folder, to where the node may
    write.
    """
    project, (_, _, release) = app / "pyproject.toml", approved.split(".", 2)
    project.write_text(
        project.read_text().replace('version = "0.1.0"', f'version = "{release}/../../../../evil"')
    )
    # `flwr run` imports it, too, at the coordinator: only the node's processes have this variable
    code = (
        f"import os\nif {launcher.APPROVALS!r} in os.environ:\n    open({str(mark)!r},"
        " 'w').close()\n"
    )
    (app / "client" / "__init__.py").write_text(code)


def sent(federation: LocalFederation, alter: Callable[[Path, Path, str], None]) -> Path:
    """Submit a run of code that was altered; its folder."""
    mark, out = federation.folder / "ran", federation.folder / "runs" / f"altered-{alter.__name__}"
    about = Approvals(load_node(federation.files["north"]).approvals).bundle()
    assert about is not None
    app = write_app(federation.folder / f"app-{alter.__name__}")
    alter(app, mark, about["folder"])
    plan = str(federation.folder / "plan.yaml")
    connect(federation.server).submit(
        app, {"plan": plan, "out": str(out), "nodes-expected": len(federation.files)}
    )
    return out


def test_what_nobody_approved_is_refused(
    federation: LocalFederation, seen: Callable[[str], None]
) -> None:
    """Code that differs by a byte, or that unpacks itself elsewhere, and is loaded; a plan that
    nobody read; a reason that the coordinator is not told.
    """
    plan = federation.folder / "plan.yaml"
    not_approved = federation.folder / "runs" / "not-approved"
    other_plan = federation.begin_run(plan, not_approved, "train.rounds=99")
    # what escapes takes the place of the approved code at its coordinator, who must have it before
    wait_until("the approved code is unpacked", not_approved.is_dir, 180)
    outs = [sent(federation, alter) for alter in (one_byte, escape)]
    for out in outs:
        wait_until("the run failed", lambda out=out: (out / "result.json").is_file(), 180)
        result = json.loads((out / "result.json").read_text())
        assert result["status"] == "failed"
        assert result["error"].count("is not approved at this node") == len(federation.files)
    _, err = other_plan.communicate(timeout=180)
    assert other_plan.returncode == 1
    assert err.count("is not approved at this node") == len(federation.files)
    assert "Traceback" not in err
    for name in federation.files:
        refusals = federation.list_events(name, "refused")
        assert len(refusals) == 2
        assert all("is not approved at this node" in words for words in refusals)
    assert not (federation.folder / "ran").exists()
    assert not list((federation.folder / "hospitals").rglob("evil*"))
    seen(
        "code with one more byte, code that unpacks itself elsewhere, another plan: refused at"
        " every node, with words"
    )


def test_it_leaves_when_told_to_and_comes_back(federation: LocalFederation) -> None:
    """A SIGTERM that is an error, or after which the SuperLink holds the key and refuses it."""
    before = federation.count_connections("west")
    assert federation.stop("west") == 0
    assert federation.log("west").splitlines()[-1].split()[1:] == ["stopped", "west"]
    federation.start_node("west")
    wait_until("it is connected again", lambda: federation.count_connections("west") > before, 30)


# ── a user without any rights ─────────────────────────────────────────────────────────────────────
AS_NOBODY = (
    "setpriv",
    "--reuid",
    str(NOBODY),
    "--regid",
    str(NOBODY),
    "--clear-groups",
    "env",
    "-u",
    "PYTHONPATH",
)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that every user of this machine can enter."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to become another user")
    with tempfile.TemporaryDirectory(prefix="fedgraft-nobody-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def environment(elsewhere: Path) -> Path:
    """The programs of an environment with the packages of this one, under a Python that every user
    can run.
    """
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not Path(python).exists():
        pytest.skip(f"{python} is not here, and this Python may belong to root alone")
    place = elsewhere / "environment"
    subprocess.run([python, "-m", "venv", "--without-pip", place], check=True)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "here.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    for entry in entry_points(group="console_scripts"):
        if entry.dist is not None and entry.dist.name in ("flwr", "fedgraft"):
            program = place / "bin" / entry.name
            program.write_text(
                f"#!{place}/bin/python\nimport sys\nfrom {entry.module} import"
                f" {entry.attr.split('.')[0]}\nsys.exit({entry.attr}())\n"
            )
            program.chmod(0o755)
    probe = subprocess.run(
        [*AS_NOBODY, place / "bin" / "python", "-c", "import fedgraft, flwr, torch"], check=False
    )
    if probe.returncode != 0:
        pytest.skip("this checkout or its packages cannot be read by another user")
    return place / "bin"


def test_a_node_runs_as_nobody_and_a_removed_one_no_more(
    federation: LocalFederation, elsewhere: Path, environment: Path, seen: Callable[[str], None]
) -> None:
    """A node that needs more rights than to read its files and write its store; a removed key that
    is still good.
    """
    make_certificates(elsewhere / "keys", hosts=[], nodes=["guest"])
    registry.add(federation.server, "guest", elsewhere / "keys" / "nodes" / "guest.pub")
    try:
        start = guest(federation, elsewhere, environment)
        approvals = elsewhere / "hospital" / "approvals"

        # ── an administrator's folder that belongs to the node's user ─────────────────────────────
        os.chown(approvals, NOBODY, NOBODY)
        done = subprocess.run(start, capture_output=True, text=True, check=False)
        assert (done.returncode, "this user can change the approved code" in done.stderr) == (
            2,
            True,
        ), done
        os.chown(approvals, 0, 0)
        for path in [approvals, *approvals.rglob("*")]:
            assert subprocess.run([*AS_NOBODY, "test", "-w", path], check=False).returncode == 1, (
                path
            )

        # ── it runs, and takes part ───────────────────────────────────────────────────────────────
        federation.start_node("guest", start)
        wait_until("it is connected", lambda: federation.count_connections("guest") > 0)
        federation.approve(federation.folder / "plan.yaml", *QUICK)
        out = federation.folder / "runs" / "with-a-guest"
        done = federation.run(federation.folder / "plan.yaml", out, *QUICK)
        assert done.code == 0, done
        assert "guest" in json.loads((out / "result.json").read_text())["final"]["nodes"]
        owners = {path.stat().st_uid for path in (elsewhere / "hospital" / "store").rglob("*")}
        assert owners == {NOBODY}

        # ── removed ───────────────────────────────────────────────────────────────────────────────
        removed = federation.fedgraft(
            "server", "nodes", "remove", "guest", "--server", federation.server_file
        )
        assert removed.code == 0, removed
        assert (
            "guest"
            not in federation.fedgraft(
                "server", "nodes", "list", "--server", federation.server_file
            ).out
        )

        def refused() -> bool:
            ends = federation.list_events("guest", "ended")
            return any("does not know it" in words for words in ends)

        wait_until("it is refused", refused, 120)
        seen(
            "a node as the user nobody: takes part, cannot write what was approved; once removed it"
            " is refused"
        )
        again = federation.fedgraft(
            "server", "nodes", "remove", "guest", "--server", federation.server_file
        )
        assert (again.code, "no node of this name is registered" in again.err) == (2, True), again
        key = str(elsewhere / "keys" / "nodes" / "guest.pub")
        again = federation.fedgraft(
            "server", "nodes", "add", "guest", key, "--server", federation.server_file
        )
        assert again.code != 0, "a key that was removed came back"
        assert "Traceback" not in again.err
    finally:
        if "guest" in federation.files:
            federation.forget("guest")
        if any(row["name"] == "guest" for row in registry.list_nodes(federation.server)):
            registry.remove(federation.server, "guest")


def guest(federation: LocalFederation, elsewhere: Path, environment: Path) -> list[str]:
    """A fourth hospital with the data of the first, all but its store out of its user's reach; how
    it is started.
    """
    place, source = elsewhere / "hospital", elsewhere / "source.yaml"
    place.mkdir()
    data = Path(load_node(federation.files["north"]).data.path)
    (shutil.copytree if data.is_dir() else shutil.copy)(data, place / data.name)
    shutil.copy(federation.ca, place / "ca.crt")
    shutil.copy(elsewhere / "keys" / "nodes" / "guest", place / "node.key")
    source.write_text(
        f"name: guest\ndata: {{path: {place / data.name}}}\nstore: {place / 'store'}\n"
    )
    federation.settle(
        "guest",
        source,
        home=place,
        private_key=place / "node.key",
        root_certificates=place / "ca.crt",
    )
    federation.approve(federation.folder / "plan.yaml", only="guest")
    for path in [place / "approvals", *(place / "approvals").rglob("*")]:
        os.chown(path, 0, 0)
    for path in (place / "node.key", place / "store"):
        os.chown(path, NOBODY, NOBODY)
    return [
        *AS_NOBODY,
        f"HOME={elsewhere}",
        str(environment / "fedgraft"),
        "node",
        "start",
        str(place / "node.yaml"),
    ]
