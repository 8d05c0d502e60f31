"""The dashboard and the alerts name metrics that the server has, and Prometheus raises them when photographs drift."""

import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image, ImageEnhance
from prometheus_client.parser import text_string_to_metric_families

from bintally import paths
from bintally.apps.seaweedfs import free_ports
from bintally.demo.warehouse import DemoWarehouse
from bintally.inference.predictor import Predictor
from bintally.model.card import save_model
from bintally.model.encoded import Encoded, Encoding
from bintally.model.images import decode
from bintally.model.network import CountingNetwork
from bintally.scoring.calibration import save_calibration
from bintally.training.distance import fit_distance
from server_process import JPEG, ServerProcess, bin_images, running_server
from small import CALIBRATION, CARD, SIZE, counting_network
from training_helpers import CPU, memory_mapped

DEPLOY = Path(__file__).parents[2] / "deploy"
PLACES = "PROMETHEUS_PATH"  # a folder with both programs, where they are in none of PATH
WAIT_S = 120.0


def program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get(PLACES, ""), os.environ["PATH"]]))


needs_prometheus = pytest.mark.skipif(
    not (program("prometheus") and program("promtool")),
    reason=f"there is no Prometheus: apt-get install prometheus, or set {PLACES} to the folder of its programs",
)


def expressions() -> list[str]:
    """PromQL of the dashboard and of the alerts."""
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    return [
        *(rule["expr"] for group in rules["groups"] for rule in group["rules"]),
        *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"]),
        *(one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"),
    ]


def test_dashboard_and_alerts_name_metrics_labels_and_values_that_the_server_has(exported_model: Path) -> None:
    with running_server(exported_model) as server:
        httpx.post(f"{server.url}/invocations?expected=2", content=bin_images()[0], headers=JPEG, timeout=60)
        text = httpx.get(f"{server.url}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values: dict[str, dict[str, set[str]]] = {}
    for sample in samples:
        for label, value in sample.labels.items():
            values.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    names = {sample.name for sample in samples}
    used = [found for text in expressions() for found in re.findall(r"\b(bintally_\w+)(?:\{([^}]*)\})?", text)]
    assert len(used) > 30
    assert {name for name, _ in used} <= names
    for name, selectors in used:
        for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', selectors):
            if label in ("job", "status"):  # one is Prometheus' own, of the other the server has what it answered
                assert label == "job" or label in values[name]
            else:
                wanted = value.split("|") if operator == "=~" else [value]
                assert set(wanted) <= values[name][label], (name, label)
    grouped = {label for text in expressions() for label in re.findall(r"\b(?:by|on) \((\w+)\)", text)}
    assert grouped - {"job"} <= {label for labels in values.values() for label in labels}


@needs_prometheus
def test_promtool_accepts_configuration_and_rules_and_refuses_others(tmp_path: Path) -> None:
    def check(folder: Path) -> int:
        command = [str(program("promtool")), "check", "config", str(folder / "prometheus.yaml")]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert check(DEPLOY) == 0
    for name in ("prometheus.yaml", "alerts.yaml"):
        shutil.copy(DEPLOY / name, tmp_path)
    assert check(tmp_path) == 0
    rules = (tmp_path / "alerts.yaml").read_text(encoding="utf-8")
    (tmp_path / "alerts.yaml").write_text(rules.replace("sum by (job) (rate(", "sum by (job) rate("), encoding="utf-8")
    assert check(tmp_path) != 0


# --- Prometheus for real ----------------------------------------------------------------------------------


@contextmanager
def running_prometheus(folder: Path, server: ServerProcess) -> Iterator[str]:
    """The URL of a Prometheus with the configuration of `deploy/` that scrapes a server each second."""
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    folder.mkdir()
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(DEPLOY / "alerts.yaml", folder)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [
        str(program("prometheus")),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command)
    try:
        url = f"http://{address}"
        wait_for(lambda: _ready(url))
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def query(url: str, expression: str) -> list[float]:
    found = httpx.get(f"{url}/api/v1/query", params={"query": expression}).json()["data"]["result"]
    return [float(one["value"][1]) for one in found]


def alerts(url: str) -> dict[str, dict[str, Any]]:
    """The alerts that are firing, by name."""
    found = httpx.get(f"{url}/api/v1/alerts").json()["data"]["alerts"]
    return {one["labels"]["alertname"]: one for one in found if one["state"] == "firing"}


def send(server: ServerProcess, url: str, photographs: Sequence[bytes]) -> None:
    """Have photographs counted, and wait until Prometheus has seen it and judged all rules since."""
    [before] = query(url, "bintally_distance_rank_count")
    for one in photographs:
        httpx.post(f"{server.url}/invocations", content=one, headers=JPEG, timeout=60).raise_for_status()
    wait_for(lambda: query(url, "bintally_distance_rank_count") == [before + len(photographs)])
    seen = _evaluations(url)
    wait_for(lambda: _evaluations(url) > seen)


def _evaluations(url: str) -> str:
    (group,) = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"]
    return str(group["lastEvaluation"])


def near_and_dark(photograph: bytes) -> bytes:
    """The middle of a photograph with a third of its light."""
    image, to = Image.open(io.BytesIO(photograph)).convert("RGB"), io.BytesIO()
    width, height = image.size
    image = image.crop((width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    ImageEnhance.Brightness(image).enhance(0.3).save(to, "JPEG")
    return to.getvalue()


@pytest.mark.slow
@needs_prometheus
def test_prometheus_tells_of_drifted_photographs_and_not_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    warehouse = DemoWarehouse(seed=3)
    numbers = (number for number in range(1, 600) if warehouse.defect(number) is None)
    photographs = [image for number in numbers if (image := warehouse.image(number))][:400]
    pixels = np.stack([decode(image, SIZE).numpy() for image in photographs[:290]])
    rows = Encoded(memory_mapped(pixels, Path("encoded")), Encoding(kind="pixels", image_size=SIZE, digest=""), {})
    one = counting_network()
    network = CountingNetwork(one.backbone, one.head, one.evidence).eval()
    network.distance, reference = fit_distance(network, True, rows, np.arange(160), np.arange(160, 290), CPU) or (
        pytest.fail("no reference was fitted")
    )
    card = CARD.model_copy(update={"distances": reference})
    save_model(paths.MODELS, network, card)
    save_calibration(paths.MODELS, CALIBRATION)
    Predictor(network, card, CALIBRATION, CPU)  # exports it before the server starts
    new = photographs[290:]
    with running_server(tmp_path) as server, running_prometheus(tmp_path / "prometheus", server) as url:
        wait_for(lambda: query(url, "bintally_distance_rank_count") == [0])
        send(server, url, new)
        assert "BintallyPhotographsDrifted" not in alerts(url)
        [rank] = query(url, "bintally_distance_rank_sum / bintally_distance_rank_count")
        assert rank < 0.6
        send(server, url, [near_and_dark(photograph) for photograph in new])
        drifted = alerts(url)["BintallyPhotographsDrifted"]
        assert 0.65 < float(drifted["value"]) <= 1
        assert "BintallyErrors" not in alerts(url) and "BintallyQueueFull" not in alerts(url)
        print(json.dumps(drifted))
