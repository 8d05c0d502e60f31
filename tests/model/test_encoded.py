"""Encoded images are what the network would compute from them, in order, and the same bytes in every run."""

import hashlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bintally.distributed.process_group import RankContext
from bintally.errors import UserError
from bintally.interruption import Stopped
from bintally.model import encoded as encoded_module
from bintally.model import encoding
from bintally.model.backbone import LITE, Backbone
from bintally.model.encoded import Encoded, Kind, MemoryMappedRows, load_encoded
from bintally.model.encoding import BATCH, encode
from bintally.model.images import decode
from bintally.model.network import CountingNetwork, EvidenceHead, Head, predict_views
from bintally.model.prediction import predict_encoded
from bintally.model.pretrained import load_weights
from bintally.model.views import stack_views
from training_helpers import exit_codes, rank_result, run_two_ranks, start_ranks

SIZE = 64
CPU = torch.device("cpu")
ALONE = RankContext(0, 1, CPU, is_main=True)


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6 + seed, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((80, 60 + seed)).save(file, "JPEG")
    return file.getvalue()


BODIES = [jpeg(seed) for seed in range(11)]  # more than a batch
ALL = np.arange(len(BODIES))
IMAGES: list[Callable[[], torch.Tensor]] = [partial(decode, body, SIZE) for body in BODIES]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    one = Backbone(LITE[0], SIZE, "every_scale")
    load_weights(one, "DEFAULT")
    return one.eval()


def encode_to(folder: Path, backbone: Backbone, kind: Kind, mirror: bool = True) -> Encoded:
    encode(folder, IMAGES, backbone, SIZE, kind, mirror, ALONE, folder.parent / "scratch", "key")
    return load_encoded(folder)


@pytest.mark.parametrize("mirror", [True, False])
def test_features_are_of_every_image_and_its_mirror_image(tmp_path: Path, backbone: Backbone, mirror: bool) -> None:
    got = encode_to(tmp_path, backbone, "features", mirror)
    assert got.encoding.kind == "features"
    assert got.rows.shape == (11, 1 + mirror, backbone.width)
    array = got.rows.take(ALL)
    assert array.dtype == np.float32
    with torch.no_grad():
        for row, body in enumerate(BODIES):
            plain = decode(body, SIZE)[None]
            for view, pixels in enumerate([plain, plain.flip(3)][: 1 + mirror]):
                # A batch is summed in another order than one image; other images differ by 0.1 and more.
                np.testing.assert_allclose(array[row, view], backbone(pixels)[0], atol=1e-4, rtol=1e-4)


def test_pixels_are_of_every_image(tmp_path: Path, backbone: Backbone) -> None:
    got = encode_to(tmp_path, backbone, "pixels")
    assert got.encoding.kind == "pixels"
    weights, content = ((tmp_path / name).read_bytes() for name in ("backbone.safetensors", "array.npy"))
    assert got.encoding.digest == hashlib.sha256(weights + hashlib.sha256(content).digest()).hexdigest()
    expected = torch.stack([decode(body, SIZE) for body in BODIES]).numpy()
    array = got.rows.take(ALL)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_predictions_of_encoded_rows_are_those_of_the_network_on_images(
    tmp_path: Path, backbone: Backbone, kind: Kind
) -> None:
    head, evidence = Head(backbone.width, 16, 3, ordinal=False, seed=1), EvidenceHead(backbone.width, 16, 2, 3, seed=2)
    network = CountingNetwork(backbone, head, evidence)
    rows, encoded = np.array([10, 2, 3]), encode_to(tmp_path, backbone, kind)
    found = predict_encoded(network, True, encoded, rows, CPU)
    pixels = torch.stack([decode(BODIES[row], SIZE) for row in rows])
    expected = predict_views(network, stack_views(pixels, True))
    torch.testing.assert_close(tuple(map(torch.from_numpy, found)), expected, atol=1e-4, rtol=0)
    of_none = predict_encoded(network, True, encoded, rows[:0], CPU)
    assert [one.shape for one in of_none] == [(0, 3), (0, 2, 3)]


@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_two_runs_write_the_same_bytes_and_other_weights_give_another_digest(
    tmp_path: Path, backbone: Backbone, kind: Kind
) -> None:
    first, again = (encode_to(tmp_path / name, backbone, kind) for name in ("first", "again"))
    assert first.encoding == again.encoding
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["array.npy", "backbone.safetensors", "encoding.json"]
    assert all((tmp_path / "first" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in files)
    for key, value in backbone.state_dict().items():
        assert torch.equal(first.backbone_state[key], value)

    torch.manual_seed(0)
    other = encode_to(tmp_path / "other", Backbone(LITE[0], SIZE, "every_scale"), kind)
    assert other.encoding.digest != first.encoding.digest


@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_an_interrupted_encoding_resumes_to_the_same_bytes(
    tmp_path: Path, backbone: Backbone, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bintally.model.encoding.SYNC_INTERVAL_S", 0)
    read: list[int] = []
    bodies = [*BODIES, *BODIES, *BODIES]

    def images(last: int) -> list[Callable[[], torch.Tensor]]:
        def image(number: int) -> torch.Tensor:
            read.append(number)
            if number > last:
                raise KeyboardInterrupt
            return decode(bodies[number], SIZE)

        return [partial(image, number) for number in range(len(bodies))]

    def run(name: str, last: int, key: str = "key") -> bytes:
        read.clear()
        encode(tmp_path / name, images(last), backbone, SIZE, kind, True, ALONE, tmp_path / "scratch", key)
        return (tmp_path / name / "array.npy").read_bytes()

    complete = run("first", 99)
    with pytest.raises(KeyboardInterrupt):
        run("second", 27)
    assert not (tmp_path / "second").exists()
    assert run("second", 99) == complete and min(read) == 24
    with pytest.raises(KeyboardInterrupt):
        run("third", 27)
    run("third", 99, key="other")
    assert min(read) == 0, "rows under another key are not resumed"
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):

        def kill(_folder: Path) -> None:
            raise KeyboardInterrupt

        killed.setattr("bintally.model.resumable_array.shutil.rmtree", kill)  # when the array has been moved away
        run("fourth", 99)
    assert [path.name for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == ["rows-0"]
    assert run("fourth", 99) == complete
    assert list((tmp_path / "scratch").iterdir()) == []


# --- ranks -------------------------------------------------------------------------------------------------

MANY = [*BODIES, *BODIES, *BODIES]  # five batches: two of the first rank, three of the second
FIRST_OF_SECOND = 16


def share(context: RankContext, folder: Path, stopped: Callable[[], bool] = lambda: False) -> list[int]:
    """Encode as a rank, killed at its second batch if a file says so; the numbers of the images decoded.

    Saves after every batch, and exchanges less than a share at a time.
    """
    machine = folder / f"machine-{context.rank // context.local_world_size}"
    decoded: list[int] = []

    def image(number: int) -> torch.Tensor:
        decoded.append(number)
        if context.rank == 1 and number == FIRST_OF_SECOND + BATCH["cpu"] and (folder / "kill").exists():
            (folder / "kill").unlink()
            while not list(machine.glob(f"scratch/*/rows-{FIRST_OF_SECOND}")):
                time.sleep(0.01)  # until the first is saved
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(MANY[number], SIZE)

    images = [partial(image, number) for number in range(len(MANY))]
    network = Backbone(LITE[0], SIZE, "every_scale")
    load_weights(network, "DEFAULT")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "SYNC_INTERVAL_S", 0)
        patch.setattr(encoding, "EXCHANGED_BYTES", 100_000)
        patch.setattr(encoding, "HASHED_BYTES", 10_000)
        encode(machine / "out", images, network, SIZE, "features", True, context, machine / "scratch", "key", stopped)
    return sorted(decoded)


@pytest.mark.parametrize("machines", [False, True])
def test_two_ranks_write_the_bytes_of_one_on_each_machine_killed_or_not(tmp_path: Path, machines: bool) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    assert share(ALONE, tmp_path / "one") == [*range(len(MANY))]
    (tmp_path / "two/kill").touch()
    killed = start_ranks(share, tmp_path / "two", local_world_size=1 if machines else 2)
    assert exit_codes(killed) == [0, -signal.SIGKILL]
    assert rank_result(0, tmp_path / "two").startswith("RanksLost: rank 0 lost the other ranks")
    assert not list(tmp_path.glob("two/*/out"))

    first, second = run_two_ranks(share, tmp_path / "two", machines)
    assert min(first, default=len(MANY)) >= BATCH["cpu"], "it resumes"
    assert second == [*range(FIRST_OF_SECOND + BATCH["cpu"], len(MANY))]
    outs = [{path.name: path.read_bytes() for path in out.iterdir()} for out in sorted(tmp_path.glob("*/*/out"))]
    assert len(outs) == 2 + machines and all(out == outs[0] for out in outs)
    assert not [path for scratch in tmp_path.glob("*/*/scratch") for path in scratch.iterdir()]


def stop_in_exchange(context: RankContext, folder: Path) -> list[int] | str:
    """Encode as a rank; the second is told to stop once rows are exchanged, if a file says so."""
    exchange, exchanging = encoding._exchange, threading.Event()

    def noted(*arguments: Any) -> None:
        exchanging.set()
        exchange(*arguments)

    def stopped() -> bool:
        return context.rank == 1 and exchanging.is_set() and (folder / "stop").exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_exchange", noted)
        try:
            return share(context, folder, stopped)
        except Stopped:
            return "stopped"


def test_all_machines_stop_if_one_is_told_to_while_they_exchange_rows(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert run_two_ranks(stop_in_exchange, tmp_path, machines=True) == ("stopped", "stopped")
    (tmp_path / "stop").unlink()
    assert run_two_ranks(stop_in_exchange, tmp_path, machines=True) == ([], [32]), (
        "all but a last batch that is not whole"
    )
    first, second = (path.read_bytes() for path in sorted(tmp_path.glob("machine-*/out/array.npy")))
    assert first == second


@pytest.mark.slow
def test_two_machines_of_two_ranks_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    for folder in ("one", "four"):
        (tmp_path / folder).mkdir()
    share(ALONE, tmp_path / "one")
    ranks = start_ranks(share, tmp_path / "four", range(4), world_size=4, local_world_size=2)
    assert exit_codes(ranks) == [0] * 4
    decoded = [number for rank in range(4) for number in rank_result(rank, tmp_path / "four")]
    assert decoded == [*range(len(MANY))], "each image once"
    arrays = [path.read_bytes() for path in sorted(tmp_path.glob("*/machine-*/out/array.npy"))]
    assert len(arrays) == 3 and len(set(arrays)) == 1


@pytest.mark.parametrize(("images", "ranks"), [(1, 3), (8, 2), (33, 2), (100, 7)])
def test_shares_are_whole_batches_and_all_images(images: int, ranks: int) -> None:
    shares = [encoding.share(rank, ranks, images, 8) for rank in range(ranks)]
    assert [number for one in shares for number in one] == [*range(images)]
    assert all(one.start % 8 == 0 and (one.stop % 8 == 0 or one.stop == images) for one in shares if one)


def test_an_image_that_does_not_decode_is_a_user_error_and_leaves_no_array(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(UserError, match="does not decode"):
        images = [*IMAGES, lambda: decode(b"garbage", SIZE)]
        encode(tmp_path, images, backbone, SIZE, "features", True, ALONE, tmp_path.parent / "scratch", "key")
    assert not list(tmp_path.glob("*array*")) and not (tmp_path / "encoding.json").exists()


@pytest.mark.parametrize("shape", [(40, 2, 1000), (40, 3, 30, 30)])
def test_rows_are_those_of_the_array_and_their_memory_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "array.npy"
    array = random.random(shape, dtype=np.float32) if len(shape) == 3 else random.integers(0, 256, shape, np.uint8)
    np.save(path, array)
    rows = MemoryMappedRows(path)
    assert rows.shape == shape

    def resident() -> int:
        """KiB of the file in this process's memory."""
        _, _, mapping = Path("/proc/self/smaps").read_text().partition(f"{path}\n")
        return int(mapping.partition("Rss:")[2].split()[0])

    for limit in (2**25, 2**14, 0):
        monkeypatch.setattr(encoded_module, "TOUCHED_BYTES", limit)
        for _ in range(20):
            chosen = random.integers(0, 40, 7)
            taken = rows.take(chosen)
            np.testing.assert_array_equal(taken, array[chosen])
            taken[:] = 0  # a copy: the file is unchanged
            if len(shape) == 3:
                view = random.random(7) < 0.5
                np.testing.assert_array_equal(rows.take(chosen, view), array[chosen, view.astype(int)])
        assert (resident() > 50) == (limit == 2**25)
    np.testing.assert_array_equal(np.load(path), array)
