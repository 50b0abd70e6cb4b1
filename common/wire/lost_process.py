"""A process that was killed tells nobody: how it ended, in words, and whoever waits is told.

It imports nothing of fedgraft: a node's `supernode.py` and `executor.py`, which are started by
their path, read this file by its path.
"""

from __future__ import annotations

import signal
from typing import Any


def how_it_ended(status: int) -> str:
    """Return the words for a process's exit status, negative for a signal."""
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    if -status == signal.SIGKILL:
        return f"was killed ({name}), as happens where memory is short"
    return f"was ended by {name}"


def fail_task(spec: Any, reason: str) -> int:
    """Tell whoever gave a task that it failed; a task whose process has said how it ended stays so.

    Args:
        spec: what Flower starts the task's process by.

    Returns:
        The status of the answer, 0 if there was none; 4xx for a task that is finished.
    """
    import httpx
    from flwr.common.constant import SubStatus
    from flwr.proto.runtime_pb2 import PushTaskOutputRequest
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
    )
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.tls import validate_and_resolve_root_certificates

    certificates = validate_and_resolve_root_certificates(
        spec.root_certificates_path, spec.insecure
    )
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name=str(spec.task_type)),
        RuntimeTokenHttpInterceptor(spec.token),
    ]
    request = PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=reason)
    try:
        with RuntimeHttpClient.from_server_address(
            spec.runtime_api_address, spec.insecure, certificates, interceptors
        ) as client:
            client.PushTaskOutput(request)
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    except (httpx.HTTPError, ValueError):
        return 0
    return httpx.codes.OK
