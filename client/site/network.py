"""The way from this node to the coordinator, one step after the other: DNS → TCP → TLS → key and
clock → health.

A step that fails ends it: what lies behind cannot be told. Nothing here disturbs a node that is
running under the same key: the key is tried with a heartbeat interval that no SuperLink accepts,
which it looks at only after it has found the key.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Connection

TIMEOUT = 10.0  # seconds for each step
FAST, SLOW = (
    5.0,
    300.0,
)  # seconds that Flower lets a node's clock be ahead of, and behind, the SuperLink's
EXPIRES_SOON = 7  # days
_STEPS = ("DNS", "TCP", "TLS", "node key", "clock")


def check_connection(connection: Connection) -> list[Finding]:
    """Every step to the SuperLink, as far as they go."""
    host, port = split_address(connection.superlink)
    found = [_dns(host, port)]
    if found[-1].state == "ok":
        found.append(_tcp(host, port))
    if found[-1].state == "ok":
        found.append(_tls(host, port, connection.root_certificates))
    if found[-1].state == "ok":
        found += _key(connection)
    found += [skipped(step, f"{found[-1].what} first") for step in _STEPS[len(found) :]]
    return [*found, _health(connection.health)]


def split_address(address: str) -> tuple[str, int]:
    """host:port or [v6]:port → host, port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _dns(host: str, port: int) -> Finding:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        remedy = "see connection.superlink, and that this machine's name server knows the host"
        return wrong("DNS", f"{host}: {error.strerror or error}", remedy)
    addresses = sorted({str(entry[4][0]) for entry in found})
    return ok("DNS", f"{host} is {', '.join(addresses[:3])}")


def _tcp(host: str, port: int) -> Finding:
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT):
            return ok("TCP", f"port {port} open, {(time.monotonic() - started) * 1e3:.0f} ms")
    except ConnectionRefusedError:
        remedy = (
            "the coordinator's server is not running, or connection.superlink names another port"
        )
        return wrong("TCP", f"port {port} refused", remedy)
    except TimeoutError:
        remedy = f"a firewall on the way drops it: allow outbound TCP to {host}:{port}"
        return wrong("TCP", f"no answer from port {port} within {TIMEOUT:g} s", remedy)
    except OSError as error:
        return wrong(
            "TCP",
            f"port {port}: {error.strerror or error}",
            "see this machine's route to the coordinator",
        )


def _tls(host: str, port: int, root: str) -> Finding:
    try:
        context = ssl.create_default_context(cafile=root)
    except FileNotFoundError:
        remedy = "copy the federation's CA certificate there; the coordinator has it"
        return wrong("TLS", f"{root}: no such file", remedy)
    except OSError as error:  # ssl.SSLError, too
        return wrong(
            "TLS",
            f"{root} is no PEM certificate ({error})",
            "copy the federation's CA certificate there",
        )
    try:
        with (
            socket.create_connection((host, port), timeout=TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            certificate, spoken = secure.getpeercert() or {}, secure.version()
    except ssl.SSLCertVerificationError as error:
        return wrong(
            "TLS", error.verify_message or str(error), _certificate_remedy(error.verify_code, host)
        )
    except ssl.SSLError as error:
        remedy = (
            "what listens there does not speak TLS: see the port, and that the server was started"
            " with TLS"
        )
        return wrong("TLS", f"no handshake: {error.reason or error}", remedy)
    except OSError as error:
        remedy = (
            "something on the way cuts the handshake off; a firewall that inspects TLS must let"
            " this host through"
        )
        return wrong("TLS", f"no handshake: {error.strerror or error}", remedy)
    left = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400
    if left < EXPIRES_SOON:
        return wrong(
            "TLS",
            f"the server's certificate expires in {left:.1f} days",
            "tell the coordinator to renew it",
        )
    return ok("TLS", f"{spoken}, certificate good for {left:.0f} days")


def _certificate_remedy(code: int, host: str) -> str:
    if code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        return (
            "tell the coordinator to renew the server's certificate; if it is new, see this"
            " machine's clock"
        )
    if code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
        return "see this machine's clock"
    if code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        return (
            f"the certificate is not for {host}: write the name that it has as connection.superlink"
        )
    return (
        "connection.root_certificates is not the CA that signed it: ask the coordinator for the"
        " federation's ca.crt"
    )


def _key(connection: Connection) -> list[Finding]:
    """Whether the SuperLink knows this node's key, and whether the two clocks agree."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    path = Path(connection.private_key)
    try:
        mode = path.stat().st_mode & 0o077
        key = load_ssh_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        remedy = (
            "`fedgraft server certificates` makes a key for each node; the coordinator hands it out"
        )
        return [wrong("node key", f"{path}: no such file", remedy)]
    except (OSError, ValueError) as error:
        return [
            wrong(
                "node key",
                f"{path} is not readable: {error}",
                "it must be an EC key in OpenSSH format",
            )
        ]
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return [
            wrong(
                "node key",
                f"{path} is not an elliptic-curve key",
                "make one: ssh-keygen -t ecdsa -b 384",
            )
        ]
    if mode:
        return [wrong("node key", f"others on this machine can read {path}", f"chmod 600 {path}")]
    return list(_ask(connection, key))


def _ask(connection: Connection, key: object) -> list[Finding]:
    import httpx
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.error import ApiErrorCode, FlowerError
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    public = key.public_key()  # pyright: ignore[reportAttributeAccessIssue]
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, public),  # pyright: ignore[reportArgumentType]
    ]
    try:
        with FleetHttpClient.from_server_address(
            connection.superlink, False, connection.root_certificates, interceptors
        ) as client:
            client.ActivateNode(
                ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=0)
            )
    except httpx.HTTPStatusError as error:
        response = error.response
    except (httpx.HTTPError, RuntimeError) as error:
        remedy = (
            "what listens there is no SuperLink of Flower 1.41, or a proxy does not pass"
            " /v1/fleet/ on"
        )
        return [wrong("node key", f"no answer from the Fleet API: {type(error).__name__}", remedy)]
    else:
        return [
            wrong(
                "node key",
                "the server took a heartbeat that it must not take",
                "tell the coordinator",
            )
        ]
    dates = response.headers.get_list("date")  # a proxy may add its own
    clock = _clock(dates[0] if dates else None)
    said = FlowerError.from_json(response.text)
    if said is not None and said.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return [ok("node key", "the SuperLink knows it"), clock]
    if said is not None and said.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        remedy = (
            f"send {connection.private_key}.pub to the coordinator, who runs `fedgraft server nodes"
            " add`; never send the key itself"
        )
        return [wrong("node key", "the SuperLink does not know it", remedy), clock]
    if response.status_code == httpx.codes.UNAUTHORIZED:
        remedy = (
            "the signature is refused: set the clock first; else the server runs without node"
            " authentication"
        )
        return [wrong("node key", "not accepted by the SuperLink", remedy), clock]
    found = f"status {response.status_code} from the Fleet API"
    return [
        wrong("node key", found, "a proxy must pass /v1/fleet/ on to a SuperLink of Flower 1.41"),
        clock,
    ]


def _clock(date: str | None) -> Finding:
    """This machine's clock beside the server's, which tells whole seconds."""
    found = re.match(
        r"\w{3}, \d{1,2} \w{3} \d{4} [\d:]{8} GMT", date or ""
    )  # a proxy may have added its own
    if found is None:
        return skipped("clock", "the server does not tell its time")
    ahead = (datetime.now(UTC) - parsedate_to_datetime(found.group())).total_seconds()
    if -SLOW < ahead < FAST:
        return ok(
            "clock",
            (
                "as the server's, within a second"
                if abs(ahead) < 2
                else f"{ahead:+.0f} s from the server's"
            ),
        )
    remedy = (
        "set it (chrony or systemd-timesyncd): the SuperLink refuses signatures from the future or"
        " the past"
    )
    return wrong("clock", f"{ahead:+.0f} s from the server's", remedy)


def _health(address: str | None) -> Finding:
    """What the SuperLink says of itself over the gRPC health protocol (no TLS: it says nothing
    else).
    """
    if address is None:
        return skipped("SuperLink health", "no connection.health")
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with contextlib.closing(grpc.insecure_channel(address)) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            said = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)  # pyright: ignore[reportAttributeAccessIssue]
        except grpc.RpcError as error:
            code = error.code().name  # pyright: ignore[reportAttributeAccessIssue]
            remedy = (
                "the server is down, or was started without a health address; leave"
                " connection.health out then"
            )
            return wrong("SuperLink health", f"{address}: {code}", remedy)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(said.status)
    if name == "SERVING":
        return ok("SuperLink health", f"{address}: {name}")
    return wrong(
        "SuperLink health",
        f"{address}: {name}",
        "the server is starting or stopping: wait, or ask the coordinator",
    )
