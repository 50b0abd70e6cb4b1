"""Requests that are answered 500, repeated for a while: it leans on names inside Flower."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace

import flwr.supernode.fleet_http_connection as fleet
import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.superexec import run_superexec
from flwr.superlink.grid import http_grid

from fedgraft.common.wire import patience


def answer_of(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://fl.example.org/v1/fleet/pull-messages")
    response = httpx.Response(status, request=request)
    return httpx.HTTPStatusError(f"status {status}", request=request, response=response)


def refuse(status: int) -> None:
    raise answer_of(status)


@pytest.mark.parametrize("module", [fleet, run_superexec, http_grid])
def test_flower_still_makes_its_requests_that_way(module) -> None:
    """A release of Flower that makes requests in another way: one 500 ends a run again."""
    assert f"{patience.MAKER}()" in inspect.getsource(module)


def test_another_flower_is_told() -> None:
    """A name that Flower no longer has, replaced without effect."""
    with pytest.raises(SystemExit, match="this release of Flower has no"):
        patience.be_patient(SimpleNamespace(__name__="flwr.x"), "the SuperLink")  # type: ignore[arg-type]


def test_a_500_is_borne_for_a_while(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A loop that ends for good at the first answer of 500; one that asks for ever; a process that
    does not say that whom it asks is away.
    """
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    module = SimpleNamespace(make_simple_http_retry_invoker=make_simple_http_retry_invoker)
    patience.be_patient(module, "the coordinator")  # type: ignore[arg-type]
    invoker = module.make_simple_http_retry_invoker()
    invoker.wait_function = lambda seconds: None
    answers = [500, 500, 503, 500, 200]

    def ask() -> str:
        status = answers.pop(0)
        if status != httpx.codes.OK:
            refuse(status)
        return "done"

    assert invoker.invoke(ask) == "done"
    said = [line for line in capfd.readouterr().out.splitlines() if line[:4] in ("Away", "Back")]
    assert said[0] == "Away: the coordinator answers 500"
    assert said[-1] == "Back"

    def trouble() -> None:
        clock[0] += 1.0
        refuse(500)

    for _ in range(2):
        clock[0] = 0.0
        with pytest.raises(httpx.HTTPStatusError):
            invoker.invoke(trouble)
        assert patience.SERVER_TROUBLE < clock[0] < patience.SERVER_TROUBLE + 3
    with pytest.raises(httpx.HTTPStatusError):
        invoker.invoke(refuse, 400)


def test_what_another_thread_is_answered_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is asked for ever, because heartbeats beside it are answered."""
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    invoker = patience.bear_trouble(make_simple_http_retry_invoker(), "the SuperLink")
    invoker.wait_function = lambda seconds: None

    def trouble() -> None:
        clock[0] += 1.0
        beat = threading.Thread(target=invoker.invoke, args=(lambda: "alive",))
        beat.start()
        beat.join()
        if clock[0] > 10 * patience.SERVER_TROUBLE:
            return
        refuse(500)

    with pytest.raises(httpx.HTTPStatusError):
        invoker.invoke(trouble)
    assert clock[0] < patience.SERVER_TROUBLE + 3
