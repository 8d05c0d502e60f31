"""Latency and throughput of `bintally serve`, compared with plain FastAPI and LitServe.

All serve the same model on the CPU and answer `POST /invocations`, a JPEG file, with the distribution over counts; the
distributions are checked to agree first. Each server runs alone, with 1, 8 and 64 clients on loopback that send their
next request once answered; servers take turns for `--rounds` rounds, and the median of the rounds is reported.

bintally        `bintally serve`: Pillow decodes, ONNX Runtime
bintally_eager  the same with PyTorch instead of ONNX Runtime
plain           FastAPI under uvicorn, PIL, PyTorch, one photograph at a time
litserve        LitServe in batches of up to 8, PIL, PyTorch
litserve_onnx   LitServe in batches of up to 8, with decoding and ONNX session of bintally

    python benchmarks/serve.py                                   two cores: about fifteen minutes
    python benchmarks/serve.py --seconds 2 --rounds 1            a quick look
    python benchmarks/serve.py --images FOLDER --model models    your own photographs and model
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bintally.apps.seaweedfs import free_ports
from common import ROOT, photographs, report, rounded, say
from common.plain import make_model

OURS = "bintally"
SERVERS = (OURS, "bintally_eager", "plain", "litserve", "litserve_onnx")
CHECKED = 8  # photographs
START_TIMEOUT_S, STOP_TIMEOUT_S = 180.0, 30.0


def main() -> None:
    arguments = _arguments()
    cells_of: dict[str, dict[int, list[dict[str, float]]]] = {
        name: {clients: [] for clients in arguments.clients} for name in arguments.servers
    }
    starts: dict[str, list[float]] = {name: [] for name in arguments.servers}
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bintally-serve-") as name:
        folder = Path(name)
        if arguments.model is None:
            say("making a model")
            make_model(folder / "model")
        bodies = photographs(arguments.images, arguments.number)
        (folder / "images").mkdir()
        for at, body in enumerate(bodies):
            (folder / f"images/{at:05}.jpg").write_bytes(body)
        for turn in range(arguments.rounds):
            for server in arguments.servers:
                with _running(server, arguments.model or folder / "model", folder, starts[server]) as port:
                    if turn == 0:
                        answers = np.array([_post(port, body) for body in bodies[:CHECKED]])
                        if server == arguments.servers[0]:
                            reference = answers
                        else:
                            differences[server] = _difference(answers, reference, arguments.tolerance)
                    for clients in arguments.clients:
                        cell = _measure(arguments, port, folder / "images", clients)
                        cells_of[server][clients].append(cell)
                        say(f"{turn + 1} of {arguments.rounds}, {server}, {clients} clients: {cell}")

    figures = {
        server: {
            f"{clients}_clients": {what: rounded(float(np.median([cell[what] for cell in cells]))) for what in cells[0]}
            for clients, cells in by_clients.items()
        }
        for server, by_clients in cells_of.items()
    }
    ours, *others = arguments.servers
    parameters = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    report(
        "serve",
        parameters | {"image_bytes_mean": round(float(np.mean([len(body) for body in bodies])))},
        figures
        | {
            f"{ours}_times_as_fast_as": {
                other: {
                    clients: rounded(cell["requests_per_second"] / figures[other][clients]["requests_per_second"])
                    for clients, cell in figures[ours].items()
                }
                for other in others
            },
            "ready_s": {server: rounded(float(np.median(some))) for server, some in starts.items()},
            "greatest_difference_of_a_probability": differences,
        },
        ["fastapi", "litserve", "onnxruntime", "pillow", "torch", "torchvision", "uvicorn"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS), help="default: all")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64], help="default: 1 8 64")
    parser.add_argument("--seconds", type=float, default=10, help="length of a measurement (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--images", type=Path, metavar="FOLDER|TAR", help="of JPEG files (default: demo bins)")
    parser.add_argument("--number", type=int, default=32, help="number of different images (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="between probabilities, as resizing by PIL and by torchvision rounds differently (default: %(default)s)",
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="default: one of 224 pixels, not trained")
    return parser.parse_args()


@contextmanager
def _running(server: str, model: Path, folder: Path, starts: list[float]) -> Iterator[int]:
    """Run a server until the block ends, and yield its port; its start time is added to `starts`."""
    port = free_ports(1)[0]
    place = ["--model", str(model.resolve()), "--port", str(port)]
    if server == OURS:
        command = [
            str(Path(sys.executable).with_name("bintally")),
            "serve",
            *place,
            "--queue",
            "64",
            "--timeout",
            "120",
        ]
    else:
        command = [sys.executable, "-m", "common.servers", server, *place]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    with (folder / f"{server}.log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            while not _is_up(port):
                if process.poll() is not None or time.perf_counter() - start > START_TIMEOUT_S:
                    log.seek(0)
                    raise SystemExit(f"{server} did not start:\n{log.read()[-2000:]}")
                time.sleep(0.05)
            starts.append(time.perf_counter() - start)
            yield port
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its child processes, which have a process group of their own."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        say(f"{process.args!r} did not end within {STOP_TIMEOUT_S:.0f} s and is killed")
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _post(port: int, body: bytes) -> list[float]:
    address = f"http://127.0.0.1:{port}/invocations"
    request = urllib.request.Request(address, body, {"content-type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        probabilities: list[float] = json.load(answer)["probabilities"]
    return probabilities


def _difference(answers: NDArray[np.float64], reference: NDArray[np.float64], allowed: float) -> float:
    """The greatest difference of a probability between two servers.

    Raises SystemExit if it is more than allowed, or if the model gives the same distribution for all photographs.
    """
    if np.ptp(reference, axis=0).max() < 10 * allowed:
        raise SystemExit("the model gives the same distribution for all photographs; use another one")
    difference = float(np.abs(answers - reference).max())
    if difference > allowed:
        raise SystemExit(f"probabilities differ by {difference:.2g} between two servers; --tolerance allows {allowed}")
    return rounded(difference)


def _measure(arguments: argparse.Namespace, port: int, images: Path, clients: int) -> dict[str, float]:
    """Figures of one measurement, with the clients in a process of their own."""
    command = [sys.executable, str(ROOT / "benchmarks/common/load.py"), "--port", str(port), "--images", str(images)]
    command += ["--seconds", str(arguments.seconds), "--warm-up", str(arguments.warm_up), "--clients", str(clients)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        raise SystemExit(f"{clients} clients were not all answered; the reason is printed above")
    printed = json.loads(ran.stdout)
    if not printed["latencies"]:
        raise SystemExit(f"no request was answered in {arguments.seconds} s; raise --seconds")
    p50, p99 = np.percentile(printed["latencies"], [50, 99]) * 1000
    return {
        "requests_per_second": rounded(len(printed["latencies"]) / arguments.seconds),
        "p50_ms": rounded(float(p50)),
        "p99_ms": rounded(float(p99)),
        "requests": len(printed["latencies"]),
        "load_generator_cores": rounded(printed["cpu"] / arguments.seconds),
    }


if __name__ == "__main__":
    main()
