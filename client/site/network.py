"""The way from this node to the coordinator, one step after the other: DNS → TCP → TLS → key and
clock → health.

A step that fails ends it: what lies behind cannot be told.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

from fedgraft.client.node.finding import Finding, State, ok, skipped, wrong
from fedgraft.client.node.node_file import Connection
from fedgraft.client.site.key_findings import check_key
from fedgraft.common.wire.proxies import ProxyRefused, connect, proxy_for

# seconds for each step
TIMEOUT = 10.0
# days
EXPIRES_SOON = 7
_DAY = 86400.0
_STEPS = ("DNS", "TCP", "TLS", "node key", "clock")

# of OpenSSL's verification, X509_V_ERR_…
_NOT_YET_VALID = 9
_HAS_EXPIRED = 10
_HOSTNAME_MISMATCH = 62
_IP_ADDRESS_MISMATCH = 64


def check_connection(connection: Connection) -> list[Finding]:
    """Try every step to the SuperLink, as far as they go."""
    host, port = split_address(connection.superlink)
    try:
        proxy = proxy_for(host)
    except ValueError as error:
        remedy = "correct it in the environment, or name the coordinator's host in no_proxy"
        return [wrong("proxy", str(error), remedy)]
    findings = [_check_dns(*proxy[:2]) if proxy else _check_dns(host, port)]
    if findings[-1].state is State.OK:
        findings.append(_check_tcp(host, port))
    if findings[-1].state is State.OK:
        findings.append(_check_tls(host, port, connection.root_certificates))
    if findings[-1].state is State.OK:
        findings += check_key(connection)
    last = findings[-1].what
    for step in _STEPS[len(findings) :]:
        findings.append(skipped(step, f"{last} first"))
    findings.append(_check_health(connection.health))
    return findings


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of host:port or [v6]:port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_dns(host: str, port: int) -> Finding:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        remedy = "see connection.superlink, and that this machine's name server knows the host"
        return wrong("DNS", f"{host}: {error.strerror or error}", remedy)
    addresses = sorted({str(info[4][0]) for info in infos})
    return ok("DNS", f"{host} is {', '.join(addresses[:3])}")


def _check_tcp(host: str, port: int) -> Finding:
    started = time.monotonic()
    try:
        with connect(host, port, TIMEOUT):
            milliseconds = (time.monotonic() - started) * 1e3
            way = "through the proxy, " if proxy_for(host) else ""
            return ok("TCP", f"port {port} open, {way}{milliseconds:.0f} ms")
    except ProxyRefused as error:
        remedy = (
            f"the proxy must let CONNECT to {host}:{port} through; or, where this machine may go"
            f" there by itself, put {host} into no_proxy"
        )
        return wrong("TCP", str(error), remedy)
    except ConnectionRefusedError:
        remedy = (
            "the coordinator's server is not running, or connection.superlink names another port"
        )
        return wrong("TCP", f"port {port} refused", remedy)
    except TimeoutError:
        remedy = f"a firewall on the way drops it: allow outbound TCP to {host}:{port}"
        return wrong("TCP", f"no answer from port {port} within {TIMEOUT:g} s", remedy)
    except OSError as error:
        remedy = "see this machine's route to the coordinator"
        return wrong("TCP", f"port {port}: {error.strerror or error}", remedy)


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────
def _check_tls(host: str, port: int, root: str) -> Finding:
    try:
        context = ssl.create_default_context(cafile=root)
    except FileNotFoundError:
        remedy = "copy the federation's CA certificate there; the coordinator has it"
        return wrong("TLS", f"{root}: no such file", remedy)
    # ssl.SSLError, too
    except OSError as error:
        remedy = "copy the federation's CA certificate there"
        return wrong("TLS", f"{root} is no PEM certificate ({error})", remedy)
    try:
        version, days = _shake_hands(context, host, port)
    except ssl.SSLCertVerificationError as error:
        remedy = _certificate_remedy(error.verify_code, host)
        return wrong("TLS", error.verify_message or str(error), remedy)
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
    if days < EXPIRES_SOON:
        remedy = "tell the coordinator to renew it"
        return wrong("TLS", f"the server's certificate expires in {days:.1f} days", remedy)
    return ok("TLS", f"{version}, certificate good for {days:.0f} days")


def _shake_hands(context: ssl.SSLContext, host: str, port: int) -> tuple[str | None, float]:
    """Return the version of TLS, and the days for which the server's certificate is good."""
    with (
        connect(host, port, TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        certificate = secure.getpeercert() or {}
        version = secure.version()
    expires = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return version, (expires - time.time()) / _DAY


def _certificate_remedy(code: int, host: str) -> str:
    if code == _HAS_EXPIRED:
        return (
            "tell the coordinator to renew the server's certificate; if it is new, see this"
            " machine's clock"
        )
    if code == _NOT_YET_VALID:
        return "see this machine's clock"
    if code in (_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH):
        what = f"the certificate is not for {host}"
        return f"{what}: write the name that it has as connection.superlink"
    return (
        "connection.root_certificates is not the CA that signed it: ask the coordinator for the"
        " federation's ca.crt"
    )


# ── health ────────────────────────────────────────────────────────────────────────────────────────
def _check_health(address: str | None) -> Finding:
    """Return what the SuperLink says of itself over the gRPC health protocol.

    No TLS: it says nothing else.
    """
    what = "SuperLink health"
    if address is None:
        return skipped(what, "no connection.health")
    # half a second
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with contextlib.closing(grpc.insecure_channel(address)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            response = stub.Check(request, timeout=TIMEOUT)  # pyright: ignore[reportAttributeAccessIssue]
        except grpc.RpcError as error:
            code = error.code().name  # pyright: ignore[reportAttributeAccessIssue]
            remedy = (
                "the server is down, or was started without a health address; leave"
                " connection.health out then"
            )
            return wrong(what, f"{address}: {code}", remedy)
    statuses = health_pb2.HealthCheckResponse.ServingStatus  # pyright: ignore[reportAttributeAccessIssue]
    status = statuses.Name(response.status)
    if status == "SERVING":
        return ok(what, f"{address}: {status}")
    remedy = "the server is starting or stopping: wait, or ask the coordinator"
    return wrong(what, f"{address}: {status}", remedy)
