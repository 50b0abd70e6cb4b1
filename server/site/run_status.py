"""How a run is, asked of the SuperLink as `flwr list` asks, in this process.

A process for each question takes two seconds of a core, for as long as a run goes on.
"""

from __future__ import annotations

import os
from pathlib import Path

import httpx
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedgraft.common.errors import RunFailed
from fedgraft.common.wire.proxies import spare_loopback

NO_ANSWER = "the SuperLink does not answer\n  → is it running? fedgraft server start server.yaml"


def ask_status(address: str, ca: Path | None, run_id: str) -> str:
    """Return `pending`, `starting`, `running`, or `finished:` and how.

    Args:
        address: the SuperLink's, host:port.
        ca: the CA's certificate; None: it is asked without TLS.

    Raises:
        RunFailed: it does not answer, or knows no such run.
    """
    spare_loopback(os.environ)
    certificates = None if ca is None else ca.read_bytes()
    interceptors = [
        CliClientHttpInterceptor(),
        RuntimeVersionHttpInterceptor(component_name="fedgraft"),
    ]
    client = ControlHttpClient.from_server_address(address, ca is None, certificates, interceptors)
    try:
        with client:
            answer = client.ListRuns(ListRunsRequest(run_id=int(run_id)))
    except httpx.HTTPStatusError as error:
        words = error.response.text.strip()
        raise RunFailed(f"the SuperLink says nothing of run {run_id}: {words[:800]}") from None
    except (httpx.HTTPError, ValueError):
        raise RunFailed(NO_ANSWER) from None
    status = answer.run_dict[int(run_id)].status
    return ":".join(filter(None, [status.status, status.sub_status]))
