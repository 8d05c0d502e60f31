"""The recipes for serving use arguments of `bintally serve` and paths of the server that exist.

deploy/README.md lists which recipes have been run for real.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from argparse import Namespace
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models  # type: ignore[import-untyped]

from bintally.apps import serve
from bintally.cli import parser_for
from bintally.serving.endpoint import Endpoint, Limits
from bintally.serving.routes import create_app
from bintally.serving.server import DRAIN_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "serve.Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.fixture
def kubernetes() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "serve.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def paths() -> set[str]:
    return {getattr(route, "path", "") for route in create_app(Endpoint(Limits(), None)).routes}


def serve_arguments(command: list[str]) -> Namespace:
    """The parsed arguments of a `bintally serve`; SystemExit if they are invalid."""
    assert Path(command[0]).name == "bintally"
    arguments = parser_for("serve").parse_args(command[1:])
    assert arguments.func is serve.run
    return arguments


def unit() -> str:
    return (DEPLOY / "bintally.service").read_text(encoding="utf-8")


def setting(name: str) -> str:
    found = re.search(rf"^{name}=(.*)$", unit(), re.MULTILINE)
    assert found, name
    return found[1]


def entrypoint(*arguments: str, folder: Path) -> list[str]:
    """The command that a container runs when it is started with these arguments."""
    stub = folder / "bintally"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" bintally "$@"\n', encoding="utf-8")
    stub.chmod(0o755)
    found = re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    assert found
    command = [*json.loads(found[1]), *arguments]
    ran = subprocess.run(command, env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def test_a_container_serves_when_sagemaker_starts_it(tmp_path: Path, paths: set[str]) -> None:
    arguments = serve_arguments(entrypoint("serve", "--queue", "8", folder=tmp_path))
    assert (arguments.model, arguments.host, arguments.port) == (Path("/opt/ml/model"), "0.0.0.0", 8080)  # noqa: S104
    assert arguments.open
    assert arguments.queue == 8
    assert {"/ping", "/invocations"} <= paths
    health = re.search(r"http://127\.0\.0\.1:8080(/\w+)", DOCKERFILE)
    assert health
    assert health[1] in paths


def test_the_image_copies_files_that_exist_and_docker_gets_no_others() -> None:
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied - {"models"})  # made by a stage
    everything, *let_in = (DEPLOY / "serve.Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert everything == "*"
    assert {line[1:] for line in let_in if line.startswith("!")} == copied


def test_the_image_has_only_packages_of_the_lock() -> None:
    names = (ROOT / "requirements/serve.txt").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(names) <= {re.split("[=<>]", line)[0] for line in project["dependencies"]}
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/lock.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name.partition("[")[0] for name in names} <= set(locked)


def test_the_server_imports_no_package_that_the_image_lacks() -> None:
    code = (
        "import sys, bintally.apps.serve, bintally.serving.server; print(*{name.split('.')[0] for name in sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = packages_distributions()
    imported = {re.sub("[._-]+", "-", name) for module in ran.stdout.split() for name in packages.get(module, [])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = {re.split(r"[\[=<>]", line)[0] for line in project["dependencies"]}
    image = set((ROOT / "requirements/serve.txt").read_text(encoding="utf-8").splitlines())
    assert {"fastapi", "torch"} <= imported & image
    assert not imported & (dependencies - image)


def test_kubernetes_objects_have_only_fields_of_their_types(kubernetes: dict[str, Any]) -> None:
    template = kubernetes["Deployment"]["spec"]["template"]
    # These models have no Deployment, and drop unknown fields.
    for kind, document in [
        (models.IoK8sApiCoreV1PodTemplateSpec, template),
        (models.IoK8sApiCoreV1Service, kubernetes["Service"]),
        (models.IoK8sApiAutoscalingV2HorizontalPodAutoscaler, kubernetes["HorizontalPodAutoscaler"]),
    ]:
        assert kind.from_dict(document).to_dict() == document
    template["spec"]["containers"][0]["readynessProbe"] = {}
    assert models.IoK8sApiCoreV1PodTemplateSpec.from_dict(template).to_dict() != template


def test_kubernetes_probes_existing_paths_and_waits_for_the_last_answers(
    kubernetes: dict[str, Any], paths: set[str]
) -> None:
    pod = kubernetes["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    arguments = serve_arguments(container["command"])
    assert not arguments.open  # so that it does not start without a token
    assert [port["containerPort"] for port in container["ports"]] == [arguments.port]
    for probe in ("readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert get["path"] in paths
        assert get["port"] == container["ports"][0]["name"]
    assert pod["metadata"]["annotations"]["prometheus.io/path"] in paths
    pre_stop_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > pre_stop_s + DRAIN_S + arguments.timeout


def test_kubernetes_objects_fit_each_other(kubernetes: dict[str, Any]) -> None:
    deployment, service = kubernetes["Deployment"], kubernetes["Service"]
    pod = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    target = kubernetes["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    secret = container["env"][0]["valueFrom"]["secretKeyRef"]
    text = (DEPLOY / "serve.yaml").read_text(encoding="utf-8")
    assert f"secret generic {secret['name']} --from-literal={secret['key']}=" in text


def test_systemd_passes_the_token_and_waits_for_the_last_answers() -> None:
    arguments = serve_arguments(shlex.split(setting("ExecStart")))
    credential = setting("LoadCredential").partition(":")[0]
    assert arguments.token_file == Path(f"%d/{credential}")
    assert arguments.host == "127.0.0.1"
    assert int(setting("TimeoutStopSec")) > DRAIN_S + arguments.timeout
    assert f"127.0.0.1:{arguments.port}/ready" in unit()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "bintally.service"
    path.write_text(unit().replace("/opt/bintally/.venv/bin/bintally", sys.executable), encoding="utf-8")
    ran = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
    path.write_text(unit().replace("ProtectHome=", "ProtectHomes="), encoding="utf-8")
    ran = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert "ProtectHomes" in ran.stderr
