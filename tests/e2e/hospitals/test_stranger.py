"""A stranger who holds only the CA's certificate: what it can reach of a federation, through each
door. Nothing.

Every attempt is made against the real SuperLink behind our gateway, and again behind nginx with the
configuration in deploy/. After all of them the lists of nodes and runs are what they were.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedgraft.common.errors import RunFailed
from fedgraft.server.site import nodes as registry
from fedgraft.server.site.certificates import make_certificates
from fedgraft.server.site.flower_processes import CONNECTION, Flower
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import find_free_ports, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
CONF = Path(__file__).resolve().parents[3] / "deploy" / "nginx" / "fedgraft.conf"


@pytest.fixture(scope="module")
def nginx(
    federation: LocalFederation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int | None]:
    """The port of a real nginx with deploy/nginx/fedgraft.conf in front of the SuperLink; None
    where there is none.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    folder, port = tmp_path_factory.mktemp("nginx"), find_free_ports(1)[0]
    text = CONF.read_text().replace("listen 9092", f"listen 127.0.0.1:{port}")
    text = text.replace("127.0.0.1:9091", f"127.0.0.1:{federation.superlink}")
    text = text.replace("/etc/fedgraft/certificates", str(federation.certificates))
    user = (
        "user root;" if os.geteuid() == 0 else ""
    )  # the test's certificates belong to who runs it
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi")
    )
    temporary += "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"{user} pid {folder}/pid; daemon off; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{text}\n}}\n"
    )
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [program, "-e", f"{folder}/error.log", "-p", str(folder), "-c", f"{folder}/nginx.conf"],
            stdout=said, stderr=said,
        )  # fmt: skip
    try:

        def listens() -> bool:
            assert process.poll() is None, (folder / "said").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until("nginx listens", listens)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(params=["gateway", "nginx"])
def door(request: pytest.FixtureRequest, federation: LocalFederation, nginx: int | None) -> int:
    """The port that a hospital is told."""
    if request.param == "gateway":
        return federation.gateway
    if nginx is None:
        pytest.skip(
            "nginx is not installed (apt-get install nginx-light): its configuration was not run"
        )
    return nginx


@pytest.fixture(autouse=True, scope="module")
def nothing_changed(federation: LocalFederation) -> Iterator[None]:
    """After everything that was tried: the same nodes and the same runs as before."""
    before = inventory(federation)
    yield
    assert inventory(federation) == before


def inventory(federation: LocalFederation) -> tuple[list[str], list[str]]:
    flower = Flower(federation.server.work)
    nodes = [str(node["node-id"]) for node in flower.call("supernode", "list", CONNECTION)["nodes"]]
    return sorted(nodes), sorted(
        str(run["run-id"]) for run in flower.call("list", CONNECTION)["runs"]
    )


def signed(port: int, ca: Path, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    """Flower's own client, which signs with this key."""
    return FleetHttpClient.from_server_address(
        f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=str(ca),
        interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
    )


def test_every_other_call_is_refused(federation: LocalFederation, door: int):
    """One call of Flower's Control or Runtime API that the door lets through: any of them is
    enough.
    """
    with httpx.Client(verify=ssl.create_default_context(cafile=str(federation.ca))) as client:
        for _, path in [
            *PROTOBUF_REQUEST_TYPES,
            ("GET", "/docs"),
            ("GET", "/openapi.json"),
            ("GET", "/health"),
        ]:
            for method in ("POST", "GET", "PUT", "DELETE", "OPTIONS"):
                if path.startswith("/v1/fleet/") and method == "POST":
                    continue
                kind = {"content-type": PROTOBUF_MEDIA_TYPE}
                answer = client.request(
                    method, f"https://127.0.0.1:{door}{path}", content=b"", headers=kind
                )
                assert answer.status_code == 403, (method, path, answer.text)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/%2e%2e%2fcontrol%2flist-nodes",
        "//v1/control/list-nodes",
        "/v1/%63ontrol/list-nodes",
        "/v1/control/list-nodes?/v1/fleet/pull-messages",
        "/v1/control/list-nodes#/v1/fleet/pull-messages",
        "/v1/control/list-nodes;/v1/fleet/pull-messages",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/",
        "/v1/fleet/pull-messages%00",
        "https://127.0.0.1/v1/control/list-nodes",
        "/V1/CONTROL/list-nodes",
        "*",
    ],
)
def test_other_spellings_are_refused(federation: LocalFederation, door: int, target: str):
    """Two programs that read one path in two ways: the door sees the Fleet API, Flower sees the
    Control API.
    """
    answer = spoken(federation, door, f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n")
    assert answer.split()[1] in ("400", "403"), answer


def test_a_request_within_a_request_is_not_seen(federation: LocalFederation, door: int):
    """Request smuggling: a body that Flower reads as the next request, to a path that the door
    refuses.
    """
    inner = "POST /v1/control/list-nodes HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    both = (
        "POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:"
        " chunked\r\nContent-Length: 4\r\n"
    )
    answer = spoken(federation, door, both, f"0\r\n\r\n{inner}")
    codes = [line.split()[1] for line in answer.splitlines() if line.startswith("HTTP/1.1")]
    assert "200" not in codes, answer
    assert all(code.startswith("4") for code in codes), answer


def spoken(federation: LocalFederation, port: int, head: str, body: str = "") -> str:
    """What a door answers to these very bytes."""
    context = ssl.create_default_context(cafile=str(federation.ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as channel,
    ):
        channel.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
        answer = b""
        while piece := channel.recv(65536):
            answer += piece
    return answer.decode(errors="replace")


@pytest.fixture(scope="module")
def ids(federation: LocalFederation) -> dict[str, int]:
    """Flower's ids of the nodes, by name."""
    return {row["name"]: int(row["id"]) for row in registry.list_nodes(federation.server)}


def test_a_key_of_ones_own_opens_nothing(
    federation: LocalFederation, ids: dict[str, int], door: int
):
    """A node that nobody registered: it registers itself, takes part, or takes another node's
    messages.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    client = signed(door, federation.ca, key)
    public = public_key_to_bytes(key.public_key())
    victim = ids["north"]
    attempts = {
        "register": lambda: client.RegisterNode(RegisterNodeFleetRequest(public_key=public)),
        "activate": lambda: client.ActivateNode(
            ActivateNodeRequest(public_key=public, heartbeat_interval=30)
        ),
        "pull": lambda: client.PullMessages(PullMessagesRequest(node=Node(node_id=victim))),
        "remove": lambda: client.UnregisterNode(UnregisterNodeFleetRequest(node_id=victim)),
    }
    for name, attempt in attempts.items():
        with pytest.raises(httpx.HTTPStatusError) as refused:
            attempt()
        assert 400 <= refused.value.response.status_code < 500, name
        assert len(refused.value.response.headers.get_list("date")) == 1, (
            "Flower's own and the door's"
        )


def test_a_registered_key_is_good_for_its_own_node_only(
    federation: LocalFederation, ids: dict[str, int], door: int
):
    """One hospital that pulls another's messages, or answers in its name."""
    private = (federation.certificates / "nodes" / "north").read_bytes()
    key = serialization.load_ssh_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    client = signed(door, federation.ca, key)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        client.PullMessages(PullMessagesRequest(node=Node(node_id=ids["south"])))
    assert refused.value.response.status_code == 401


# nginx refuses the same calls one by one, above
@pytest.mark.parametrize(
    "door", ["gateway", pytest.param("nginx", marks=pytest.mark.exhaustive)], indirect=True
)
def test_flowers_own_commands_from_outside(federation: LocalFederation, door: int, tmp_path: Path):
    """`flwr` with the CA's certificate and the hospitals' address: nodes are listed and added, runs
    started.
    """
    flower = Flower.connect(tmp_path, f"127.0.0.1:{door}", federation.ca)
    make_certificates(tmp_path / "keys", hosts=[], nodes=["evil"])
    public = str(tmp_path / "keys" / "nodes" / "evil.pub")
    for words in (
        ("supernode", "list", CONNECTION),
        ("supernode", "register", public, CONNECTION),
        ("list", CONNECTION),
    ):
        with pytest.raises(RunFailed):
            flower.call(*words)
    with pytest.raises(RunFailed):
        flower.submit(flower.make_app(), {"plan": "digits", "out": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_a_task_is_not_given_to_who_has_no_secret(federation: LocalFederation):
    """Somebody on the coordinator's own host, without the secret, takes a run's task and its
    token.
    """
    context = ssl.create_default_context(cafile=str(federation.ca))
    request = AcquireTaskRequest(supported_task_types=["flwr-serverapp"]).SerializeToString()
    with httpx.Client(verify=context) as client:
        answer = client.post(
            f"https://127.0.0.1:{federation.superlink}/v1/runtime/acquire-task",
            content=request,
            headers={"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE},
        )
    assert answer.status_code in (401, 403), answer.text
    assert federation.server.secret.stat().st_mode & 0o777 == 0o600


def test_the_superlink_is_not_on_the_network(federation: LocalFederation):
    """The Control API on an address that other hosts reach."""
    listening = {
        line.split()[3]
        for line in listeners()
        if line.split()[3].endswith(f":{federation.superlink}")
    }
    assert listening == {f"127.0.0.1:{federation.superlink}"}


def listeners() -> list[str]:
    """Listening TCP sockets as `ss -ltn` lists them, read from /proc where ss is missing."""
    rows = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":  # LISTEN
            address, port = fields[1].split(":")
            octets = [str(int(address[k : k + 2], 16)) for k in (6, 4, 2, 0)]
            rows.append(f"LISTEN 0 0 {'.'.join(octets)}:{int(port, 16)}")
    return rows


def test_no_tls_no_answer(federation: LocalFederation, door: int):
    """Plain HTTP that is answered by the Fleet API."""
    with httpx.Client() as client:
        try:
            answer = client.post(f"http://127.0.0.1:{door}/v1/fleet/pull-messages", content=b"")
        except httpx.TransportError:
            return
    assert answer.status_code == 400, answer.text  # nginx says in plain text that it wants TLS


@pytest.mark.parametrize(
    ("case", "told"),
    [("unregistered key", "does not know it"), ("wrong CA", "not one of this federation's CA")],
)
def test_a_node_that_does_not_belong_is_told_so(
    federation: LocalFederation, tmp_path: Path, case: str, told: str
):
    """A node with a key that nobody registered, or that trusts another CA, that takes part, or is
    not told why not.
    """
    make_certificates(tmp_path, hosts=["localhost"], nodes=["other"])
    ca = tmp_path / "ca.crt" if case == "wrong CA" else federation.ca
    key = tmp_path / "nodes" / "other"
    federation.settle("stranger", federation.files["north"], private_key=key, root_certificates=ca)
    federation.approve(federation.folder / "plan.yaml", only="stranger")
    try:
        federation.start_node("stranger")
        wait_until("it is refused", lambda: federation.list_events("stranger", "ended"))
        assert told in federation.list_events("stranger", "ended")[0]
        assert federation.count_connections("stranger") == 0
    finally:
        federation.forget("stranger")
