"""Encoded photographs are what the network would have seen, in order, and the same bytes every time."""

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bintally.errors import UserError
from bintally.model import encoded as module
from bintally.model.backbone import LITE, Backbone
from bintally.model.encoded import Encoded, MemoryMappedRows, encode, load_encoded
from bintally.model.images import decode
from bintally.model.pretrained import load_weights

SIZE = 64
CPU = torch.device("cpu")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6 + seed, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((80, 60 + seed)).save(file, "JPEG")
    return file.getvalue()


BODIES = [jpeg(seed) for seed in range(11)]  # more than a batch
EVERY = np.arange(len(BODIES))
READS: list[Callable[[], bytes]] = [partial(bytes, body) for body in BODIES]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    one = Backbone(LITE[0], SIZE, "every_scale")
    load_weights(one, LITE[0], "DEFAULT")
    return one.eval()


def encoded(folder: Path, backbone: Backbone, trained: str | int, mirrored: bool = True) -> Encoded:
    encode(folder, READS, backbone, SIZE, trained, mirrored, CPU, folder.parent / "scratch", "key")
    return load_encoded(folder)


@pytest.mark.parametrize("mirrored", [True, False])
def test_features_are_those_of_each_decoded_photograph_and_its_mirror_image(
    tmp_path: Path, backbone: Backbone, mirrored: bool
) -> None:
    got = encoded(tmp_path, backbone, "head", mirrored)
    assert got.encoding.kind == "features"
    assert got.rows.shape == (11, 1 + mirrored, backbone.width)
    array = got.rows.take(EVERY)
    assert array.dtype == np.float32
    with torch.no_grad():
        for place, body in enumerate(BODIES):
            plain = decode(body, SIZE)[None]
            for view, pixels in enumerate([plain, plain.flip(3)][: 1 + mirrored]):
                # Summed in another order in a batch than alone; other photographs differ by 0.1 and more.
                np.testing.assert_allclose(array[place, view], backbone(pixels)[0], atol=1e-4, rtol=1e-4)


def test_pixels_are_the_decoded_photographs_where_the_backbone_learns(tmp_path: Path, backbone: Backbone) -> None:
    got = encoded(tmp_path, backbone, "all")
    assert got.encoding.kind == "pixels"
    expected = torch.stack([decode(body, SIZE) for body in BODIES]).numpy()
    array = got.rows.take(EVERY)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, expected)


@torch.no_grad()
def test_maps_take_the_backbone_to_the_features_of_each_photograph(tmp_path: Path, backbone: Backbone) -> None:
    got = encoded(tmp_path, backbone, 2)
    assert (got.encoding.kind, got.encoding.learned) == ("maps", 2)
    # 40 maps of an eighth of the side, and behind them the means of 16, 24 and 40 maps.
    assert got.rows.shape == (11, 2, 40 * 8 * 8 + 16 + 24 + 40)
    other = Backbone(LITE[0], SIZE, "every_scale").eval()
    other.load_state_dict(got.backbone_state)
    got.ready(other)
    pixels = torch.stack([decode(body, SIZE) for body in BODIES])
    for view, images in enumerate([pixels, pixels.flip(3)]):
        rows = torch.from_numpy(got.rows.take(EVERY)[:, view])
        torch.testing.assert_close(other(rows), backbone(images), atol=1e-4, rtol=1e-4)


def test_arrays_suit_the_backbones_they_are_the_constant_part_of(tmp_path: Path, backbone: Backbone) -> None:
    kinds: dict[str, str | int] = {"features": "head", "maps": 2, "pixels": "all"}
    arrays = {kind: encoded(tmp_path / kind, backbone, trained) for kind, trained in kinds.items()}
    later, early = copy.deepcopy(backbone), copy.deepcopy(backbone)
    later.get_parameter("body._conv_head.weight").data += 1
    early.get_parameter("body._conv_stem.weight").data += 1

    def suited(one: Backbone, size: int = SIZE) -> list[str]:
        return [kind for kind, array in arrays.items() if array.suit(one, size)]

    assert suited(backbone) == ["features", "maps", "pixels"]
    assert suited(later) == ["maps", "pixels"]
    assert suited(early) == ["pixels"]
    assert suited(backbone, SIZE + 32) == []


@pytest.mark.parametrize("trained", ["head", 2, "all"])
def test_two_runs_write_the_same_bytes_and_other_weights_give_another_digest(
    tmp_path: Path, backbone: Backbone, trained: str | int
) -> None:
    first, again = (encoded(tmp_path / name, backbone, trained) for name in ("first", "again"))
    assert first.encoding == again.encoding
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["array.npy", "encoding.json", "backbone.safetensors"]
    assert all((tmp_path / "first" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in files)
    for key, value in backbone.state_dict().items():
        assert torch.equal(first.backbone_state[key], value)

    torch.manual_seed(0)
    other = encoded(tmp_path / "other", Backbone(LITE[0], SIZE, "every_scale"), trained)
    assert other.encoding.digest != first.encoding.digest


@pytest.mark.parametrize("trained", ["head", 2, "all"])
def test_an_interrupted_encoding_goes_on_to_the_same_bytes(
    tmp_path: Path, backbone: Backbone, trained: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bintally.model.encoded.KEEP_EVERY_S", 0)
    read: list[int] = []
    bodies = [*BODIES, *BODIES, *BODIES]

    def reads(last: int) -> list[Callable[[], bytes]]:
        def one(number: int) -> bytes:
            read.append(number)
            if number > last:
                raise KeyboardInterrupt
            return bodies[number]

        return [partial(one, number) for number in range(len(bodies))]

    def run(name: str, last: int, key: str = "key") -> bytes:
        read.clear()
        encode(tmp_path / name, reads(last), backbone, SIZE, trained, True, CPU, tmp_path / "scratch", key)
        return (tmp_path / name / "array.npy").read_bytes()

    whole = run("first", 99)
    with pytest.raises(KeyboardInterrupt):
        run("second", 27)
    assert not (tmp_path / "second").exists()
    assert run("second", 99) == whole and min(read) == 24
    with pytest.raises(KeyboardInterrupt):
        run("third", 27)
    run("third", 99, key="other")
    assert min(read) == 0, "what other bins came to is not gone on from"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_photograph_that_does_not_decode_is_a_fault_and_leaves_no_array(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(UserError, match="does not decode"):
        encode(
            tmp_path,
            [*READS, lambda: b"garbage"],
            backbone,
            SIZE,
            "head",
            True,
            CPU,
            tmp_path.parent / "scratch",
            "key",
        )
    assert not list(tmp_path.glob("*array*")) and not (tmp_path / "encoding.json").exists()


@pytest.mark.parametrize("shape", [(40, 2, 1000), (40, 3, 30, 30)])
def test_rows_are_read_as_numpy_reads_them_and_memory_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "array.npy"
    array = random.random(shape, dtype=np.float32) if len(shape) == 3 else random.integers(0, 256, shape, np.uint8)
    np.save(path, array)
    rows = MemoryMappedRows(path)
    assert rows.shape == shape

    def resident() -> int:
        """How much of the file is in this process's memory, in KiB."""
        _, _, mapping = Path("/proc/self/smaps").read_text().partition(f"{path}\n")
        return int(mapping.partition("Rss:")[2].split()[0])

    for limit in (2**25, 2**14, 0):
        monkeypatch.setattr(module, "TOUCHED_BYTES", limit)
        for _ in range(20):
            chosen = random.integers(0, 40, 7)
            taken = rows.take(chosen)
            np.testing.assert_array_equal(taken, array[chosen])
            taken[:] = 0  # a copy: the file keeps what it has
            if len(shape) == 3:
                view = random.random(7) < 0.5
                np.testing.assert_array_equal(rows.take(chosen, view), array[chosen, view.astype(int)])
        assert (resident() > 50) == (limit == 2**25)
    np.testing.assert_array_equal(np.load(path), array)
