"""Weights are loaded from packages, files and URLs, or refused with the reason."""

import functools
import http.server
import shutil
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
from bintally.hashing import file_digest
from bintally.model import pretrained
from bintally.model.backbone import LITE
from bintally.model.pretrained import load_weights
from small import backbone, images


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file_give_the_features_of_its_network(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(5)
    network = torchvision.models.resnet18().eval()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), path)
    one = backbone()
    before = one(images())
    load_weights(one, "none")
    assert torch.equal(one(images()), before)
    load_weights(one, str(path))
    network.fc = nn.Identity()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network((images() / 255 - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(one(images()), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)


def test_weights_of_a_model_of_this_project_are_those_of_its_backbone(tmp_path: Path) -> None:
    source, one = backbone("resnet18", "every_scale", seed=5), backbone()
    model = {f"backbone.{name}": value.contiguous() for name, value in source.state_dict().items()}
    save_file(model, tmp_path / "model.safetensors")
    load_weights(one, str(tmp_path / "model.safetensors"))
    state = source.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


class TouchesFile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_file_of_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    torch.save({"conv1.weight": TouchesFile(touched)}, path)
    with pytest.raises(UserError, match=rf"model\.weights: '{path}' is not a file of weights alone") as caught:
        load_weights(backbone(), str(path))
    assert "\n" not in str(caught.value)
    assert not touched.exists()


@pytest.mark.parametrize("content", ["nothing", "text", "tensor", "cut short"])
def test_a_file_without_weights_is_a_user_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torch.zeros(1000), path)
    if content != "tensor":
        path.write_bytes({"nothing": b"", "text": b"<html>", "cut short": path.read_bytes()[:-600]}[content])
    with pytest.raises(UserError, match=rf"model\.weights: '{path}'"):
        load_weights(backbone("squeezenet1_1"), str(path))


def test_weights_of_another_network_are_a_user_error_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    one = backbone()
    before = {key: value.clone() for key, value in one.state_dict().items()}
    state_dict = torchvision.models.resnet18().state_dict()
    incomplete = {name: value for name, value in state_dict.items() if name != "layer1.0.conv1.weight"}
    narrower = state_dict | {"bn1.bias": torch.zeros(3)}
    for state, key in ((incomplete, r"layer1\.0\.conv1\.weight"), (narrower, r"bn1\.bias")):
        torch.save(state, path)
        with pytest.raises(UserError, match=rf"model\.weights: '{path}' does not fit resnet18: {key}"):
            load_weights(one, str(path))
    assert all(torch.equal(before[key], value) for key, value in one.state_dict().items())


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"model\.weights: '{tmp_path}/no\.pth' .*existing file"):
        load_weights(backbone("squeezenet1_1"), f"{tmp_path}/no.pth")


@pytest.fixture
def file_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The URL of an HTTP server on this machine, and the folder it serves."""
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


def test_every_url_is_cached_separately(file_server: tuple[str, Path]) -> None:
    url, folder = file_server
    for seed in (7, 8):
        (folder / str(seed)).mkdir()
        source = backbone("squeezenet1_1", seed=seed)
        torch.save(source.body[0].state_dict(), folder / str(seed) / "weights.pth")
        one = backbone("squeezenet1_1")
        load_weights(one, f"{url}/{seed}/weights.pth")
        assert torch.equal(one(images()), source(images())), seed


def test_a_date_in_a_name_is_no_digest_and_torchvisions_digests_are_checked(
    file_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = file_server
    source = backbone("squeezenet1_1", seed=7)
    torch.save(source.body[0].state_dict(), folder / "weights-20260101.pth")
    one = backbone("squeezenet1_1")
    load_weights(one, f"{url}/weights-20260101.pth")
    assert torch.equal(one(images()), source(images()))
    digest = file_digest(folder / "weights-20260101.pth").hex()[:8]
    for name in (f"a-{digest}.pth", "b-01234567.pth"):
        shutil.copy(folder / "weights-20260101.pth", folder / name)
    monkeypatch.setattr(pretrained, "TORCHVISION", "127.0.0.1")
    load_weights(one, f"{url}/a-{digest}.pth")
    with pytest.raises(UserError, match=rf"could not download {url}/b-01234567\.pth \(invalid hash value"):
        load_weights(one, f"{url}/b-01234567.pth")


def test_all_names_of_torchvision_hold_a_digest() -> None:
    urls = [torchvision.models.get_model_weights(name).DEFAULT.url for name in ("resnet50", "vit_h_14", "googlenet")]
    assert all(pretrained.digest_in(url) for url in urls)


def test_a_folder_for_downloads_that_cannot_be_written_is_a_user_error(
    file_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"x\.pth' cannot be written"):
        load_weights(backbone("squeezenet1_1"), f"{file_server[0]}/x.pth")


def test_a_path_that_is_too_long_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.weights: 'xx.*File name too long"):
        load_weights(backbone("squeezenet1_1"), "x" * 300)


def test_a_url_without_weights_is_a_user_error(file_server: tuple[str, Path]) -> None:
    url, folder = file_server
    (folder / "page.pth").write_text("<html>please log in</html>")
    for name in ("page.pth", "missing.pth"):
        with pytest.raises(UserError, match=rf"model\.weights: .*{url}/{name}"):
            load_weights(backbone("squeezenet1_1"), f"{url}/{name}")


def test_an_unreachable_server_is_a_user_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/x.pth"
    with pytest.raises(UserError, match=rf"could not download {url} .*refused.*model\.weights.*{LITE[0]}") as caught:
        load_weights(backbone("squeezenet1_1"), url)
    assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() is None
