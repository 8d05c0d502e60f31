"""The loopback store: closed to everyone without its keys, alone in its folder, gone with its process."""

import fcntl
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bintally.apps.remote import default_remote, remote_server
from bintally.apps.seaweedfs import HOST, Store, free_ports, running_store, s3_server
from bintally.errors import UserError

DEADLINE_S = 60
COMPANY = {
    "HTTP_PROXY": f"http://{HOST}:9",
    "http_proxy": f"http://{HOST}:9",
    "AWS_PROFILE": "nobody",
    "AWS_ACCESS_KEY_ID": "AKIAOFTHEUSER",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "WEED_JWT_SIGNING_KEY": "of-another-server",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder, ü") / "store"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Store]:
    """A server that was started behind a proxy, with an unknown profile and other keys in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in COMPANY.items():
            patch.setenv(name, value)
        for name in ("no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        with s3_server(folder, free_ports(1)[0], buckets=["bins"], public=["open"]) as running:
            assert {name: os.environ[name] for name in COMPANY} == COMPANY and "NO_PROXY" not in os.environ
            patch.undo()
            yield running


def processes_in(folder: Path) -> list[Path]:
    """The processes whose working directory is a folder: its server."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder.resolve():
                found.append(process)
        except OSError:
            continue
    return found


def listening(process: Path) -> dict[int, str]:
    """The addresses that a process listens on, as in /proc/net, by port."""
    names = [file.readlink().name for file in (process / "fd").iterdir() if file.is_symlink()]
    inodes = {name.removeprefix("socket:[").rstrip("]") for name in names if name.startswith("socket:")}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                found[int(port, 16)] = address
    return found


def answer_over_tls(port: int, certificate: Path | None) -> bytes:
    """The first bytes that a port sends to a client that speaks HTTP/2, as gRPC does, or HTTP/1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if certificate:
        context.load_cert_chain(certificate)
    with socket.create_connection((HOST, port), timeout=DEADLINE_S) as plain, context.wrap_socket(plain) as secure:
        if secure.selected_alpn_protocol() == "h2":
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        else:
            secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return secure.recv(100)


def test_every_port_but_that_of_s3_asks_for_the_servers_own_certificate(folder: Path, server: Store) -> None:
    (process,) = processes_in(folder)
    ports = listening(process)
    s3 = int(server.endpoint.rpartition(":")[2])
    assert s3 in ports and len(ports) > 5
    assert set(ports.values()) == {"0100007F"}, "loopback alone"
    for port in set(ports) - {s3}:
        for method in ("GET", "PUT", "POST", "DELETE"):
            try:
                answer = httpx.request(method, f"http://{HOST}:{port}/buckets/bins/x", content=b"x", trust_env=False)
            except httpx.HTTPError:
                continue  # closed without an answer
            assert answer.status_code == 400 and "HTTPS server" in answer.text, port
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            answer_over_tls(port, None)
        assert answer_over_tls(port, folder / "tls.pem"), "whoever has the certificate gets an answer"


def test_s3_refuses_who_has_no_key_and_pages_of_other_sites(folder: Path, server: Store) -> None:
    server.filesystem().pipe({"bins/a": b"1", "open/a": b"2"})
    client = httpx.Client(base_url=server.endpoint, trust_env=False, headers={"Origin": "http://evil.example"})
    for method in ("GET", "PUT", "DELETE"):
        assert client.request(method, "/bins/a").status_code == 403
    for method in ("PUT", "DELETE"):
        assert client.request(method, "/open/a").status_code == 403
    public = client.get("/open/a")
    assert public.content == b"2" and "access-control-allow-origin" not in public.headers
    assert server.filesystem().cat("bins/a") == b"1"
    theirs = Store(server.endpoint, COMPANY["AWS_ACCESS_KEY_ID"], COMPANY["AWS_SECRET_ACCESS_KEY"])
    with pytest.raises(OSError, match=r"(?i)access.?key"):
        theirs.filesystem().ls("bins")


def test_its_files_are_its_owners_alone(folder: Path, server: Store) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("keys.json", "s3.json", "tls.pem", "filer.sock", "s3.sock"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name


def test_a_folder_has_one_server_that_others_find(folder: Path, server: Store) -> None:
    assert running_store(folder) == server
    found = f"runs already, at {server.endpoint}: use it"
    with pytest.raises(UserError, match=re.escape(found)), s3_server(folder, free_ports(1)[0]):
        pass


def test_the_server_of_a_killed_process_ends_and_the_next_one_has_its_data(tmp_path: Path) -> None:
    store = tmp_path / "store"
    code = (
        "import sys, time; from pathlib import Path; from bintally.apps.seaweedfs import free_ports, s3_server\n"
        "with s3_server(Path(sys.argv[1]), free_ports(1)[0], ['bins']) as store:\n"
        "    store.filesystem().pipe('bins/a', b'kept'); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout and parent.stdout.readline() == "ready\n"
        assert len(processes_in(store)) == 1
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while running_store(store):  # it has the signal, and answers for a moment
        assert time.monotonic() < deadline
    assert not processes_in(store), "no server runs: not even one that is about to end"
    with s3_server(store, free_ports(1)[0]) as again:
        assert again.filesystem().cat("bins/a") == b"kept"


def test_a_folder_of_something_else_and_damaged_keys_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    before = tmp_path.stat().st_mode
    with pytest.raises(UserError, match="has other files, such as 'photographs'"), s3_server(tmp_path, 1):
        pass
    assert tmp_path.stat().st_mode == before
    broken = tmp_path / "broken"
    broken.mkdir()
    for text in ("[", "1", "[1, 2]", '["one"]'):
        (broken / "keys.json").write_text(text)
        with pytest.raises(UserError, match=r"keys\.json is damaged .* remove it"), s3_server(broken, free_ports(1)[0]):
            pass
    with pytest.raises(UserError, match="cannot hold a store"), s3_server(broken / "keys.json", 1):
        pass


def test_what_killed_commands_left_and_who_only_looks_do_not_stand_in_the_way(tmp_path: Path) -> None:
    for name in (".lock.0123456789abcdef.tmp", ".keys.json.0123456789abcdef.tmp", "lock"):
        (tmp_path / name).touch()
    with (tmp_path / "lock").open("rb") as looks:
        fcntl.flock(looks, fcntl.LOCK_EX)
        threading.Timer(0.5, fcntl.flock, (looks, fcntl.LOCK_UN)).start()
        with s3_server(tmp_path, free_ports(1)[0]) as store:
            assert running_store(tmp_path) == store


def test_free_ports_are_none_that_is_taken() -> None:
    for taken in (20_000, 30_000):
        ports = free_ports(10_000, taken)
        assert 20_000 not in ports and len(set(ports)) == len(ports) > 2000
        assert max(ports) + 10_000 < 32_768, "ports that Linux gives to connections"


# --- the server behind the default remote -----------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A repository as the working directory whose default remote's port another program has; the port."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server((HOST, 0)) as stranger:
        port = stranger.getsockname()[1]
        subprocess.run(["git", "init", "-q"], check=True)
        Path(".dvc").mkdir()
        remote = f"['remote \"store\"']\n    url = s3://bintally\n    endpointurl = http://{HOST}:{port}\n"
        Path(".dvc/config").write_text(f"[core]\n    analytics = false\n    remote = store\n{remote}")
        yield port


def test_a_stranger_on_the_port_is_not_used_and_dvc_is_told_the_other_port(repository: int) -> None:
    with remote_server():
        store = running_store(Path(".store"))
        assert store and default_remote().endpoint == store.endpoint != f"http://{HOST}:{repository}"
        assert store.filesystem().ls("") == ["bintally"]
        local = Path(".dvc/config.local")
        assert local.stat().st_mode & 0o777 == 0o600
        assert store.secret_key in local.read_text()
        with remote_server():
            assert running_store(Path(".store")) == store, "the server that runs is used"
    assert running_store(Path(".store")) is None
    port = default_remote().loopback_port
    with remote_server():
        assert default_remote().loopback_port == port, "the port stays"


def test_the_committed_port_is_not_written_again_and_other_settings_stay(repository: int) -> None:
    config, port = Path(".dvc/config"), free_ports(1)[0]
    config.write_text(config.read_text().replace(str(repository), str(port)))
    local = Path(".dvc/config.local")
    local.write_text("[core]\n    checksum_jobs = 2\n")
    local.chmod(0o644)
    with remote_server():
        assert default_remote().loopback_port == port
    text = local.read_text()
    assert "endpointurl" not in text and "checksum_jobs = 2" in text
    assert local.stat().st_mode & 0o777 == 0o600


def test_a_remote_of_another_name_is_its_owners_business(repository: int) -> None:
    config = Path(".dvc/config")
    config.write_text(config.read_text().replace("store", "minio"))
    with remote_server():
        assert not Path(".store").exists() and not Path(".dvc/config.local").exists()


def test_the_store_of_another_folder_is_used_while_it_runs(repository: int, tmp_path: Path) -> None:
    environment = os.environ | COMPANY
    command = [str(Path(sys.executable).with_name("bintally")), "store", "--dir", str(tmp_path / "elsewhere")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as foreground:
        assert foreground.stdout
        try:
            first = foreground.stdout.readline()
            with remote_server():
                endpoint = default_remote().endpoint
                assert endpoint and f"S3 at {endpoint}, data in {tmp_path / 'elsewhere'}" in first
            assert not Path(".store").exists()
        finally:
            foreground.terminate()
        assert "NO_PROXY" in foreground.stdout.read()
    assert foreground.returncode == 0
    assert running_store(tmp_path / "elsewhere") is None
    with remote_server():
        assert running_store(Path(".store"))


def test_commands_that_come_at_once_share_one_server(repository: int) -> None:
    code = (
        "from bintally.apps.remote import default_remote, remote_server\n"
        "print('ready', flush=True); input()\n"
        "with remote_server():\n"
        "    print(default_remote().endpoint, flush=True); input()"
    )
    with start(code) as first, start(code) as second, start(code) as third:
        commands = (first, second, third)
        assert [answer(command) for command in commands] == ["ready"] * 3
        for command in commands:
            print(file=command.stdin, flush=True)
        assert len(endpoints := {answer(command) for command in commands}) == 1 and "" not in endpoints
        for command in commands:
            print(file=command.stdin, flush=True)
    assert [command.returncode for command in commands] == [0, 0, 0]
    assert running_store(Path(".store")) is None


def start(code: str) -> subprocess.Popen[str]:
    """A process that runs Python code."""
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout
    return process.stdout.readline().rstrip()


def test_users_of_one_server_finish_before_it_stops(repository: int) -> None:
    code = (
        "import time; from pathlib import Path; from bintally.apps.remote import remote_server\n"
        "from bintally.apps.seaweedfs import running_store\n"
        "with remote_server():\n"
        "    print('in', flush=True); input(); print(running_store(Path('.store')).filesystem().ls(''), flush=True)"
    )

    with start(code) as owner:
        assert answer(owner) == "in"
        with start(code) as user:
            assert answer(user) == "in"
            print(file=owner.stdin, flush=True)
            assert answer(owner) == "['bintally']"
            time.sleep(0.5)
            assert owner.poll() is None, "it waits for the other"
            print(file=user.stdin, flush=True)
            assert answer(user) == "['bintally']"
    assert (owner.returncode, user.returncode) == (0, 0)
