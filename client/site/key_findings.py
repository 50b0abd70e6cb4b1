"""Whether the SuperLink knows this node's key, and whether the two clocks agree.

Nothing here disturbs a node that is running under the same key: the key is tried with a heartbeat
interval that no SuperLink accepts, which it looks at only after it has found the key.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Connection

if TYPE_CHECKING:
    import httpx
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# seconds that Flower lets a node's clock be ahead of, and behind, the SuperLink's
FAST = 5.0
SLOW = 300.0
# a SuperLink tells whole seconds
_RESOLUTION = 2.0
_KEY = "node key"
_CLOCK = "clock"
_DATE = re.compile(r"\w{3}, \d{1,2} \w{3} \d{4} [\d:]{8} GMT")
# permissions of others
_OTHERS = 0o077


def check_key(connection: Connection) -> list[Finding]:
    """Return what is found of the key, and of the clock if the SuperLink answers."""
    key = _load_key(Path(connection.private_key))
    if isinstance(key, Finding):
        return [key]
    response = _ask(connection, key)
    if isinstance(response, Finding):
        return [response]
    # a proxy may add its own
    dates = response.headers.get_list("date")
    return [_read_answer(connection, response), check_clock(dates[0] if dates else "")]


def _load_key(path: Path) -> EllipticCurvePrivateKey | Finding:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        mode = path.stat().st_mode
        key = load_ssh_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        makes = "`fedgraft server certificates` makes a key for each node"
        return wrong(_KEY, f"{path}: no such file", f"{makes}; the coordinator hands it out")
    except (OSError, ValueError) as error:
        remedy = "it must be an EC key in OpenSSH format"
        return wrong(_KEY, f"{path} is not readable: {error}", remedy)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        remedy = "make one: ssh-keygen -t ecdsa -b 384"
        return wrong(_KEY, f"{path} is not an elliptic-curve key", remedy)
    if mode & _OTHERS:
        return wrong(_KEY, f"others on this machine can read {path}", f"chmod 600 {path}")
    return key


def _ask(connection: Connection, key: EllipticCurvePrivateKey) -> httpx.Response | Finding:
    """Return what the Fleet API answers to a question that it must refuse."""
    # a second of imports
    import httpx
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    public = key.public_key()
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, public),
    ]
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=0)
    try:
        with FleetHttpClient.from_server_address(
            connection.superlink, False, connection.root_certificates, interceptors
        ) as client:
            client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        return error.response
    except (httpx.HTTPError, RuntimeError) as error:
        remedy = (
            "what listens there is no SuperLink of Flower 1.41, or a proxy does not pass"
            " /v1/fleet/ on"
        )
        return wrong(_KEY, f"no answer from the Fleet API: {type(error).__name__}", remedy)
    detail = "the server took a heartbeat that it must not take"
    return wrong(_KEY, detail, "tell the coordinator")


def _read_answer(connection: Connection, response: httpx.Response) -> Finding:
    import httpx
    from flwr.supercore.error import ApiErrorCode, FlowerError

    error = FlowerError.from_json(response.text)
    code = None if error is None else error.code
    if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return ok(_KEY, "the SuperLink knows it")
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        send = f"send {connection.private_key}.pub to the coordinator"
        remedy = f"{send}, who runs `fedgraft server nodes add`; never send the key itself"
        return wrong(_KEY, "the SuperLink does not know it", remedy)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        remedy = (
            "the signature is refused: set the clock first; else the server runs without node"
            " authentication"
        )
        return wrong(_KEY, "not accepted by the SuperLink", remedy)
    remedy = "a proxy must pass /v1/fleet/ on to a SuperLink of Flower 1.41"
    return wrong(_KEY, f"status {response.status_code} from the Fleet API", remedy)


def check_clock(date: str) -> Finding:
    """Return this machine's clock beside the server's, which tells whole seconds."""
    match = _DATE.match(date)
    if match is None:
        return skipped(_CLOCK, "the server does not tell its time")
    ahead = (datetime.now(UTC) - parsedate_to_datetime(match.group())).total_seconds()
    if abs(ahead) < _RESOLUTION:
        return ok(_CLOCK, "as the server's, within a second")
    detail = f"{ahead:+.0f} s from the server's"
    if -SLOW < ahead < FAST:
        return ok(_CLOCK, detail)
    remedy = (
        "set it (chrony or systemd-timesyncd): the SuperLink refuses signatures from the future or"
        " the past"
    )
    return wrong(_CLOCK, detail, remedy)
