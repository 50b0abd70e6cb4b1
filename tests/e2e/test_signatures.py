"""Code that a hub serves with signatures, and a node that runs nothing that its trusted entities
did not sign.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedgraft.common.files.bundle import build_bundle
from fedgraft.common.plan.plan_file import load_plan, plan_yaml
from fedgraft.server.site import nodes as registry
from fedgraft.server.site.certificates import make_certificates
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
WHO = "fpk_consortium"
SMALL = [
    "backbone={name: cifar-resnet8}",
    "pretrain=null",
    "simulation=null",
    "train.rounds=1",
    "aggregate.min_nodes=1",
]


class Hub:
    """What Flower asks of a hub: `POST /hub/fetch-fab` → where the code is and who signed it; `GET`
    → the code.
    """

    def __init__(self, code: bytes) -> None:
        self.code, self.signature, self.signed_at = code, b"", int(time.time())
        self.asked: list[dict[str, str]] = []
        hub = self

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hub.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                signature = base64.urlsafe_b64encode(hub.signature).decode().rstrip("=")
                said = {"public_key_id": WHO, "signature": signature, "signed_at": hub.signed_at}
                self.answer(
                    json.dumps({"fab_url": f"{hub.url}/code", "verifications": [said]}).encode()
                )

            def do_GET(self) -> None:
                self.answer(hub.code)

            def answer(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def sign(self, key: Ed25519PrivateKey) -> None:
        """As Flower 1.41 wants it: the seconds since 1970 (8 bytes, big-endian), then the code's
        SHA-256.
        """
        self.signature = key.sign(
            self.signed_at.to_bytes(8, "big") + hashlib.sha256(self.code).digest()
        )


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(build_bundle().data)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def test_only_what_the_consortium_signed_runs(hub: Hub, tmp_path: Path, seen) -> None:
    """A signature of somebody else that is good enough; one of the consortium that is not."""
    consortium, somebody = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trusted, plan = tmp_path / "trusted.yaml", tmp_path / "plan.yaml"
    public = consortium.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    trusted.write_text(f"{WHO}: {public}\n")
    plan.write_text(plan_yaml(load_plan("digits", SMALL)))
    (tmp_path / "node.yaml").write_text("name: a\ndata: {path: 'sklearn:digits'}\nstore: store\n")
    with LocalFederation(tmp_path, {}, plan, settings=f"hub: {hub.url}\n") as federation:
        make_certificates(tmp_path / "keys", hosts=[], nodes=["a"])
        registry.add(federation.server, "a", tmp_path / "keys" / "nodes" / "a.pub")
        key = tmp_path / "keys" / "nodes" / "a"
        federation.settle("a", tmp_path / "node.yaml", private_key=key, trusted_entities=trusted)
        federation.approve(plan)
        federation.start_node("a")
        wait_until("it is connected", lambda: federation.count_connections("a") > 0)

        hub.sign(somebody)
        done = federation.run(plan, tmp_path / "runs" / "somebody")
        assert done.code == 1, done
        assert "could not be verified" in done.err
        hub.sign(consortium)
        done = federation.run(plan, tmp_path / "runs" / "consortium")
        assert done.code == 0, done
    assert {asked["app_id"] for asked in hub.asked} == {"@fedgraft/fedgraft"}
    seen(
        "code that somebody else signed: refused by a node with trusted entities; signed by the"
        " consortium: runs"
    )
