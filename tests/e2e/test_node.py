"""One hospital against a real SuperLink over TLS: it joins, trains, refuses other code, is killed, and comes back.

Node and SuperLink are processes of their own. Where the test runs as root, the node runs without the rights that make
root root, before an administrator's folder that belongs to somebody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client import launcher
from client.approvals import Approvals
from client.approve import approve, propose
from client.journal import Journal
from client.node import load_node
from common.bundle import write_app
from common.plan_file import load_plan, plan_yaml
from tests.authority import Authority

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
DROPPED = "-dac_override,-dac_read_search,-fowner,-chown,-setuid,-setgid"
SMALL = [
    "backbone={name: cifar-resnet8}",
    "pretrain=null",
    "simulation=null",
    "train.rounds=1",
    "aggregate.min_nodes=1",
]


class Federation:
    """A SuperLink on loopback with one hospital registered, whose node is not started yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.port = free_port()
        self.authority = Authority(folder / "ca")
        self.authority.server_files(folder / "server.crt", folder / "server.key")
        self.environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "localhost:{self.port}"\n'
            f'root-certificates = "{self.authority.path}"\n'
        )
        self.hospital = folder / "hospital"
        (self.hospital / "store").mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        (self.hospital / "node.key").write_bytes(private)
        (self.hospital / "node.key").chmod(0o600)
        (self.hospital / "node.key.pub").write_bytes(public)
        self.file = self.hospital / "node.yaml"
        self.file.write_text(
            "name: hospital-a\ndata: {path: 'sklearn:digits'}\nstore: store\npolicy: {approved_plans: recorded}\n"
            f"connection: {{superlink: 'localhost:{self.port}', root_certificates: ../ca/ca.crt, "
            "private_key: node.key}\n"
        )
        self.begun: list[str] = []  # ids of runs
        self.superlink = self.start_superlink()

    def start_superlink(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [BIN / "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port),
             "--ssl-ca-certfile", self.authority.path, "--ssl-certfile", self.folder / "server.crt",
             "--ssl-keyfile", self.folder / "server.key", "--enable-supernode-auth",
             "--database", self.folder / "state.db", "--disable-runtime-dependency-installation"],
            cwd=self.folder, env=self.environment, stdout=(self.folder / "superlink.log").open("ab"),
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        until(lambda: answers(self.port), 60, "the SuperLink answers")
        return process

    def flwr(self, *arguments: object) -> str:
        command = [str(BIN / "flwr"), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def run(self, name: str, alter: Callable[[Path], None] = lambda app: None) -> Path:
        """Submit the plan with this code; the run's folder."""
        app, plan, out = write_app(self.folder / f"app-{name}"), self.folder / "plan.yaml", self.folder / name
        alter(app)
        plan.write_text(plan_yaml(load_plan("digits", SMALL)))
        config = f'plan="{plan}" out="{out}" nodes-expected=1'
        begun = json.loads(self.flwr("run", app, "here", "--run-config", config, "--format", "json"))
        self.begun.append(str(begun["run-id"]))
        return out

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.superlink.pid, signal.SIGKILL)
        self.superlink.wait()


class Started:
    """`fedgraft node start`, and the lines that it printed."""

    def __init__(self, federation: Federation) -> None:
        self.log = federation.hospital / "node.log"
        dropped = ["setpriv", "--bounding-set", DROPPED, "--inh-caps", "-all"] if os.geteuid() == 0 else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*dropped, sys.executable, "-m", "fedgraft", "node", "start", federation.file,
                 *(["--allow-root"] if os.geteuid() == 0 else [])],
                cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def lines(self) -> list[list[str]]:
        """Event and words of each line."""
        return [line.split(maxsplit=2)[1:] for line in self.log.read_text().splitlines()]

    def events(self, kind: str) -> list[str]:
        return [line[1] for line in self.lines() if line[0] == kind]

    def end(self, number: int = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("as root this needs setpriv, to drop root's rights")
    federation = Federation(tmp_path_factory.mktemp("federation"))
    try:
        federation.flwr("supernode", "register", federation.hospital / "node.key.pub", "here", "--name", "hospital-a")
        node = load_node(federation.file)
        approve(node, propose(node, load_plan("digits", SMALL), None), "the administrator")
        if os.geteuid() == 0:
            for place in [node.approvals, *node.approvals.rglob("*")]:
                os.chown(place, 65534, 65534)
        yield federation
    finally:
        federation.end()


@pytest.fixture(scope="module")
def node(federation: Federation) -> Iterator[Started]:
    started = Started(federation)
    try:
        until(lambda: started.events("connected"), 120, "the node connects")
        yield started
    finally:
        started.end(signal.SIGKILL)


def test_root_is_refused(federation: Federation) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    command = [sys.executable, "-m", "fedgraft", "node", "start", str(federation.file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "running as root" in done.stderr


def test_the_preflight_finds_the_key_registered(federation: Federation, node: Started) -> None:
    """Asked while the node runs under the same key, which must go on undisturbed (the next test needs it)."""
    from client.network import check_connection

    connection = load_node(federation.file).connection
    assert connection is not None
    found = {finding.what: finding for finding in check_connection(connection)}
    assert (found["node key"].state, found["clock"].state) == ("ok", "ok"), found
    stranger = federation.folder / "stranger.key"
    stranger.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    stranger.chmod(0o600)
    found = {
        finding.what: finding
        for finding in check_connection(connection.model_copy(update={"private_key": str(stranger)}))
    }
    assert "does not know it" in found["node key"].found


def test_the_approved_code_trains_and_everything_is_written_down(federation: Federation, node: Started) -> None:
    out = federation.run("trained")
    until(lambda: status(out) == "completed", 300, "the run completes")
    journal = Journal(federation.hospital / "store" / "audit.jsonl")
    kinds = [(entry.kind, entry.body["kind"], entry.body.get("decision")) for entry in journal.entries()]
    for kind in ("query.offer", "query.backbone", "train", "evaluate"):
        assert ("in", kind, None) in kinds
        assert ("out", kind, "sent") in kinds
    assert journal.verify() == []


def test_other_code_is_refused_before_a_line_of_it_runs(federation: Federation, node: Started) -> None:
    """One byte more; and a version that leads Flower's installer out of the read-only folder into the node's store."""
    mark = federation.hospital / "store" / "ran"

    def one_byte(app: Path) -> None:
        (app / "client" / "round.py").open("a").write("#")

    def escape(app: Path) -> None:
        folder = (Approvals(federation.hospital / "approvals").bundle() or {})["folder"]
        project, (_, _, release) = app / "pyproject.toml", folder.split(".", 2)
        version = f'version = "{release}/../../../store/evil"'
        project.write_text(project.read_text().replace('version = "0.1.0"', version))
        # `flwr run` imports it, too, at the coordinator: only the node's processes have this variable
        code = f"import os\nif {launcher.APPROVALS!r} in os.environ:\n    open({str(mark)!r}, 'w').close()\n"
        (app / "client" / "__init__.py").write_text(code)

    for number, alter in enumerate((one_byte, escape), start=1):
        federation.run(f"refused-{number}", alter)
        until(lambda number=number: len(node.events("refused")) == number, 120, "the node refuses")
    assert all("is not approved at this node" in words for words in node.events("refused"))
    assert not mark.exists()
    assert not list((federation.hospital / "store").glob("evil*"))
    for run in federation.begun[-2:]:
        seen = lambda run=run: "is not approved at this node" in federation.flwr("log", run, "here", "--show")  # noqa: E731
        until(seen, 60, "the coordinator sees the reason")


def test_it_outlives_the_server(federation: Federation, node: Started) -> None:
    os.killpg(federation.superlink.pid, signal.SIGKILL)
    federation.superlink.wait()
    federation.superlink = federation.start_superlink()
    out = federation.run("after-the-server")
    until(lambda: status(out) == "completed", 300, "a run completes after the server came back")


@pytest.mark.exhaustive
def test_it_comes_back_after_a_crash(node: Started) -> None:
    """Killed, a SuperNode cannot sign off: its key is refused until a minute has passed without a heartbeat."""
    before = len(node.events("connected"))
    os.kill(child_of(node.process.pid), signal.SIGKILL)
    until(lambda: any("holds this key" in words for words in node.events("ended")), 60, "the key is refused")
    until(lambda: len(node.events("connected")) > before, 180, "it connects again")


def test_it_leaves_when_told_to(federation: Federation, node: Started) -> None:
    assert node.end() == 0
    assert node.lines()[-1] == ["stopped", "hospital-a"]


def status(out: Path) -> str:
    try:
        return json.loads((out / "result.json").read_text())["status"]
    except (OSError, ValueError):
        return ""


def until(holds: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"within {seconds} s: {what}"
        time.sleep(0.2)


def child_of(parent: int) -> int:
    """The one process that this one started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                return int(folder.name)
    raise AssertionError(f"{parent} has no child")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
