"""A request that a SuperLink in trouble answers with 500 is asked again for a minute.

Flower gives up at the first 500, such as "database is locked", and the process that asked ends;
502, 503 and 504 it repeats for ever.

    be_patient(flwr.supernode.fleet_http_connection, "the coordinator")

It imports nothing of fedgraft and nothing of Flower: `client/site/supernode.py` and
`server/site/serverapp.py`, which are started by their path, read this file by its path.
"""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType
from typing import Any

# seconds for which a SuperLink may answer 500 to the same request
SERVER_TROUBLE = 60.0
INTERNAL_SERVER_ERROR = 500
# what Flower's modules make the repetition of their requests with
MAKER = "make_simple_http_retry_invoker"


def be_patient(module: ModuleType, whom: str) -> None:
    """Let a module of Flower's repeat what is answered 500.

    Args:
        module: one that makes its requests with `MAKER`.
        whom: who is asked, in the words that are printed.

    Raises:
        SystemExit: this Flower makes them in another way.
    """
    make = getattr(module, MAKER, None)
    # another Flower than this was written for
    if make is None:
        sys.exit(f"this release of Flower has no {MAKER} in {module.__name__}")
    setattr(module, MAKER, lambda: bear_trouble(make(), whom))


def bear_trouble(invoker: Any, whom: str) -> Any:
    """Return Flower's invoker of requests, which repeats a 500 now; it prints `Away` and `Back`."""
    gives_up = invoker.should_giveup
    backs_off = invoker.on_backoff
    succeeds = invoker.on_success
    # several threads share it: that a heartbeat was answered says nothing of another's request
    trouble = threading.local()

    def give_up(error: Exception) -> bool:
        if status_of(error) != INTERNAL_SERVER_ERROR:
            return gives_up(error)
        now = time.monotonic()
        began = trouble.__dict__.setdefault("began", now)
        if now - began <= SERVER_TROUBLE:
            return False
        trouble.__dict__.clear()
        return True

    def back_off(attempts: Any) -> None:
        print(f"Away: {_words_of(attempts.exception, whom)}", flush=True)
        backs_off(attempts)

    def succeed(attempts: Any) -> None:
        trouble.__dict__.clear()
        if attempts.tries > 1:
            print("Back", flush=True)
        succeeds(attempts)

    invoker.should_giveup = give_up
    invoker.on_backoff = back_off
    invoker.on_success = succeed
    return invoker


def status_of(error: Exception) -> int:
    """Return the status of the answer that an error is about, 0 if there was none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _words_of(error: Exception, whom: str) -> str:
    status = status_of(error)
    if status:
        return f"{whom} answers {status}"
    return f"{whom} does not answer ({type(error).__name__})"
