"""How a server is reached: directly or through a proxy, and the reasons if it is not."""

import contextlib
import datetime
import socket
import time
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bintally.bins import connections
from bintally.bins.connections import Connections, Unreachable
from bintally.errors import UserError
from s3_stub import Answer, stub_server


def reason(url: str) -> str:
    with pytest.raises(Unreachable) as caught:
        Connections(url).get("/", {})
    return str(caught.value)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_name_that_does_not_resolve_is_the_reason() -> None:
    assert reason("http://nowhere.invalid:80") == "the name 'nowhere.invalid' does not resolve"


def test_tls_with_a_server_that_does_not_speak_it_is_the_reason() -> None:
    with stub_server(lambda _: Answer()) as stub:
        assert "does not speak TLS" in reason(stub.endpoint.replace("http:", "https:"))


@pytest.mark.parametrize("sent", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_head_that_never_ends_is_given_up(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WAIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def dribble() -> None:
            with listener.accept()[0] as accepted, contextlib.suppress(ConnectionError):
                for _ in range(100):
                    accepted.sendall(sent)
                    time.sleep(0.05)

        thread = Thread(target=dribble)
        thread.start()
        with pytest.raises(TimeoutError):
            Connections(f"http://127.0.0.1:{listener.getsockname()[1]}").get("/", {})
        thread.join()


def test_a_certificate_that_nobody_has_signed_is_the_reason_until_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    secret, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    key.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with stub_server(lambda _: Answer(b"x"), (certificate, key)) as stub:
        url = stub.endpoint.replace("http://127.0.0.1", "https://localhost")
        assert "its certificate is not trusted" in reason(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        connection, answer = Connections(url).get("/", {})
        assert answer.body(10) == b"x"
        connection.close()


def test_a_proxy_is_asked_for_other_machines_and_never_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with stub_server(lambda _: Answer(b"of the proxy")) as proxy, stub_server(lambda _: Answer(b"own")) as own:
        monkeypatch.setenv("http_proxy", proxy.endpoint.replace("//", "//me:p%40ss@"))
        for url, body in {"http://bins.invalid:8333": b"of the proxy", own.endpoint: b"own"}.items():
            connection, answer = Connections(url).get("/b/1.json", {})
            assert answer.body(100) == body
            connection.close()
        monkeypatch.setenv("no_proxy", "bins.invalid")
        assert "does not resolve" in reason("http://bins.invalid:8333")
    assert [request.target for request in proxy.requests] == ["http://bins.invalid:8333/b/1.json"]
    assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
    assert own.requests[0].target == "/b/1.json"


def test_a_proxy_that_makes_no_tunnel_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with stub_server(lambda _: Answer()) as proxy:  # which knows no CONNECT
        monkeypatch.setenv("https_proxy", proxy.endpoint)
        assert reason("https://bins.invalid").startswith(
            "the proxy 127.0.0.1 of the environment: Tunnel connection failed"
        )


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("socks5://me:secret@proxy:1080", "socks5://proxy:1080"),
        ("http://me:sec/ret@proxy:abc", "http://proxy:abc"),
        ("me:secret@proxy:99999", "proxy:99999"),
        ("http://[::1", "http://[::1"),
        ("http://a..b:80", "http://a..b:80"),
        ("http://", "http://"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_user_error_without_its_password(
    proxy: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(UserError) as caught:
        Connections("http://bins.invalid")
    assert str(caught.value).startswith(f"the proxy {shown} that HTTP_PROXY or ALL_PROXY names cannot be used: ")


def test_a_password_of_other_bytes_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with stub_server(lambda _: Answer()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.endpoint.replace("//", "//me:\udcff@"))
        Connections("http://bins.invalid").get("/", {})[0].close()
    assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6/w=="


@pytest.mark.parametrize("url", ["http://a..b:80", "http://.b", f"https://s3.{'x' * 70}.amazonaws.com", "http://[1:2]"])
def test_a_host_that_can_have_no_address_is_a_user_error(url: str) -> None:
    with pytest.raises(UserError) as caught:
        Connections(url)
    assert str(caught.value) == f"'{url}' is not the URL of a server: check fetch.endpoint and fetch.region"
