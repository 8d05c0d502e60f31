"""The recipes for predicting on several machines score every part once, with arguments that `bintally predict` has."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models  # type: ignore[import-untyped]

from bintally.apps.dataset import Part
from bintally.cli import parser_for

DEPLOY = Path(__file__).parents[2] / "deploy"
SOURCE = ["s3://BUCKET/PREFIX", "--to", "counts"]


def job() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "predict.yaml").read_text(encoding="utf-8"))
    return content


def called(command: list[str], folder: Path, **variables: str) -> list[str]:
    """The arguments that a recipe gives to `bintally`."""
    stub = folder / ".venv/bin/bintally"
    stub.parent.mkdir(parents=True, exist_ok=True)
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    stub.chmod(0o755)
    environment = {"PATH": f"{stub.parent}{os.pathsep}/usr/bin{os.pathsep}/bin", **variables}
    ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def parts(arguments: list[list[str]]) -> list[Part]:
    parsed = [parser_for("predict").parse_args(one) for one in arguments]
    assert {one.source for one in parsed} == {SOURCE[0]}
    return [Part.parse(one.part, one.to) for one in parsed]


def test_a_slurm_array_scores_every_part_once(tmp_path: Path) -> None:
    script = DEPLOY / "predict.sh"
    (array,) = (line for line in script.read_text(encoding="utf-8").splitlines() if "#SBATCH --array" in line)
    first, last = map(int, array.partition("=")[2].split("-"))
    found = parts(
        [
            called([str(script), *SOURCE], tmp_path, SLURM_ARRAY_TASK_ID=str(number), SLURM_SUBMIT_DIR=str(tmp_path))
            for number in range(first, last + 1)
        ]
    )
    assert [one.number for one in found] == list(range(1, found[0].parts + 1))


def test_an_indexed_job_scores_every_part_once(tmp_path: Path) -> None:
    spec = job()["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    found = parts(
        [
            called(container["command"], tmp_path, JOB_COMPLETION_INDEX=str(index))
            for index in range(spec["completions"])
        ]
    )
    assert [one.number for one in found] == list(range(1, found[0].parts + 1))


def test_kubernetes_has_only_fields_of_its_types() -> None:
    document = job()
    kind = models.IoK8sApiCoreV1PodTemplateSpec  # these models have no Job, and drop unknown fields
    assert kind.from_dict(document["spec"]["template"]).to_dict() == document["spec"]["template"]
    pod = document["spec"]["template"]["spec"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


@pytest.mark.parametrize("recipe", ["predict.sh", "predict.yaml"])
def test_shellcheck_finds_nothing(recipe: str) -> None:
    command = job()["spec"]["template"]["spec"]["containers"][0]["command"]
    script = command[2] if recipe == "predict.yaml" else (DEPLOY / recipe).read_text(encoding="utf-8")
    shellcheck = [str(Path(sys.executable).parent / "shellcheck"), "--shell=bash", "--severity=style", "-"]
    subprocess.run(shellcheck, input=script, text=True, check=True)
