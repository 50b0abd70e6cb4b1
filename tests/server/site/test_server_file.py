"""server.yaml: what it refuses before anything listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.common.errors import UserError
from fedgraft.server.site.certificates import make_certificates
from fedgraft.server.site.server_file import check_certificates, load_server, split_address

EXAMPLE = Path(__file__).parents[3] / "deploy" / "server.example.yaml"


def written(folder: Path, text: str) -> Path:
    (folder / "server.yaml").write_text("certificates: c\nstate: s\n" + text)
    return folder / "server.yaml"


def test_the_example_is_valid_and_off_by_default():
    """The file that people copy does not load; or something is watched that nobody asked for."""
    server = load_server(EXAMPLE)
    assert server.state == EXAMPLE.parent / "state"
    assert (server.metrics, server.tracking.tensorboard, server.tracking.mlflow) == (
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("superlink: 0.0.0.0:9091\n", "must stay on this host"),
        ("superlink: fl.example.org:9091\n", "must stay on this host"),
        ("superlink: 127.0.0.1\n", "host:port"),
        ("gateway: {address: 0.0.0.0:99999}\n", "host:port"),
        ("gateway: {address: 0.0.0.0:9091}\n", "port 9091 is superlink's, too"),
        ("metrics: 127.0.0.1:9092\n", "port 9092 is gateway.address's, too"),
        ("gatway: {}\n", "gateway"),
    ],
)
def test_what_it_refuses(tmp_path, text, told):
    """The Control API, which asks for no password, is put on the network by one wrong word."""
    with pytest.raises(UserError) as error:
        load_server(written(tmp_path, text))
    assert told in str(error.value)
    assert "server.yaml:3" in str(error.value)
    assert "→" in str(error.value)


def test_addresses():
    """IPv6 in brackets, as everywhere."""
    assert split_address("[::1]:9091") == ("::1", 9091)
    assert str(split_address("[::1]:9091")) == "[::1]:9091"
    assert load_server(EXAMPLE).superlink == "127.0.0.1:9091"


def test_certificates_are_looked_at_first(tmp_path):
    """Flower's traceback instead of the command that makes them; a key that others can read goes
    unnoticed.
    """
    server = load_server(written(tmp_path, ""))
    with pytest.raises(
        UserError, match=r"ca.crt: is missing[^→]*→ make it: fedgraft server certificates"
    ):
        check_certificates(server)
    make_certificates(server.certificates, hosts=["h"], nodes=[])
    check_certificates(server)
    (server.certificates / "server.key").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        check_certificates(server)
