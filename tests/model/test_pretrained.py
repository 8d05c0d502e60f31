"""Weights from wherever they come, or a fault that says why not."""

import functools
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from bintally.errors import UserError
from bintally.model.backbone import LITE
from bintally.model.pretrained import load_weights
from small import backbone, images


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_give_the_features_of_the_network_they_are_of(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(5)
    network = torchvision.models.resnet18().eval()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), path)
    one = backbone()
    before = one(images())
    load_weights(one, "resnet18", "none")
    assert torch.equal(one(images()), before)
    load_weights(one, "resnet18", str(path))
    network.fc = nn.Identity()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network((images() / 255 - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(one(images()), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)


class Code:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_weights_that_bring_code_are_refused_and_it_is_not_run(tmp_path: Path) -> None:
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    torch.save({"conv1.weight": Code(touched)}, path)
    with pytest.raises(UserError, match=rf"model\.weights: '{path}' is not a file of weights alone") as caught:
        load_weights(backbone(), "resnet18", str(path))
    assert "\n" not in str(caught.value)
    assert not touched.exists()


@pytest.mark.parametrize("content", ["nothing", "text", "tensor", "cut short"])
def test_a_file_that_holds_no_weights_is_a_fault(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torch.zeros(1000), path)
    if content != "tensor":
        path.write_bytes({"nothing": b"", "text": b"<html>", "cut short": path.read_bytes()[:-600]}[content])
    with pytest.raises(UserError, match=rf"model\.weights: '{path}'"):
        load_weights(backbone("squeezenet1_1"), "squeezenet1_1", str(path))


def test_weights_of_another_network_are_a_fault_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    one = backbone()
    before = {key: value.clone() for key, value in one.state_dict().items()}
    lacking = dict(one.body.state_dict())
    del lacking["layer1.0.conv1.weight"]
    narrower = one.body.state_dict() | {"bn1.bias": torch.zeros(3)}
    for state, key in ((lacking, r"layer1\.0\.conv1\.weight"), (narrower, r"bn1\.bias")):
        torch.save(state, path)
        with pytest.raises(UserError, match=rf"model\.weights: '{path}' does not fit resnet18: {key}"):
            load_weights(one, "resnet18", str(path))
    assert all(torch.equal(before[key], value) for key, value in one.state_dict().items())


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"model\.weights: '{tmp_path}/no\.pth' .*a file that exists"):
        load_weights(backbone("squeezenet1_1"), "squeezenet1_1", f"{tmp_path}/no.pth")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The URL of a server on this machine, and the folder whose files it serves."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "downloads"))
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_url_gives_its_own_weights(served: tuple[str, Path]) -> None:
    url, folder = served
    for seed in (7, 8):
        (folder / str(seed)).mkdir()
        source = backbone("squeezenet1_1", seed=seed)
        torch.save(source.body.state_dict(), folder / str(seed) / "weights.pth")
        one = backbone("squeezenet1_1")
        load_weights(one, "squeezenet1_1", f"{url}/{seed}/weights.pth")
        assert torch.equal(one(images()), source(images())), seed


def test_a_url_that_gives_no_weights_is_a_fault(served: tuple[str, Path]) -> None:
    url, folder = served
    (folder / "page.pth").write_text("<html>please log in</html>")
    for name in ("page.pth", "missing.pth"):
        with pytest.raises(UserError, match=rf"model\.weights: .*{url}/{name}"):
            load_weights(backbone("squeezenet1_1"), "squeezenet1_1", f"{url}/{name}")


def test_a_server_that_cannot_be_reached_is_a_fault_that_says_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/x.pth"
    with pytest.raises(UserError, match=rf"could not download {url} .*refused.*model\.weights.*{LITE[0]}") as caught:
        load_weights(backbone("squeezenet1_1"), "squeezenet1_1", url)
    assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() is None
