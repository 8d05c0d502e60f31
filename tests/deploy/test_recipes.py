"""The recipes for several machines start the same training on each, and say nothing that their schedulers or
`bintally.params` would refuse. The schedulers and DVC are stubs here; see deploy/README.md for what ran for real."""

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models  # type: ignore[import-untyped]

from bintally.params import Params, load_params

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KINDS = {
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}
STUBS = {
    # An `exp run` that is to wait saves on SIGINT, as a stage does, and does nothing about SIGTERM.
    "dvc": """
        echo "$*" >>"$CALLS/$NODE"
        case "$*" in
            "exp list --name-only origin") cat "$CALLS/pushed" ;;
            "exp list --name-only") cat "$CALLS/made" ;;
            "exp run "*)
                [ -e "$CALLS/wait" ] || exit 0
                trap 'echo saved >>"$CALLS/$NODE"; exit 255' INT
                echo $$ >"$CALLS/pid.new" && mv "$CALLS/pid.new" "$CALLS/pid"
                for _ in {1..1000}; do sleep 0.02; done ;;
        esac 2>/dev/null""",
    "scontrol": """
        echo "$*" >>"$CALLS/scontrol"
        [ "$1" != show ] || printf 'big1\\nbig2\\n'""",
    # Every task's environment differs in its number alone.
    "srun": """
        [ ! -e "$CALLS/srun_ends_with" ] || exit "$(cat "$CALLS/srun_ends_with")"
        while [[ $1 == --* ]]; do shift; done
        for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
        for task in "${tasks[@]}"; do wait "$task" || exit; done""",
    "getent": "",
}


def stub(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@dataclass(frozen=True)
class Site:
    """A repository with the recipes, where nothing but git is real."""

    root: Path
    calls: Path
    repository: Path

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.root),
            "CALLS": str(self.calls),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            **variables,
        }

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        # A shell that runs the tests in the background has SIGINT ignored, which bash passes on and cannot trap.
        return subprocess.Popen(
            ["env", "--default-signal=INT", *command],
            cwd=self.repository,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, **variables: str) -> tuple[int, str]:
        process = self.start(*command, **variables)
        text, _ = process.communicate(timeout=30)
        return process.returncode, text

    def must(self, *command: str, **variables: str) -> str:
        code, text = self.run(*command, **variables)
        assert code == 0, text
        return text

    def called(self, who: str) -> list[str]:
        return (self.calls / who).read_text(encoding="utf-8").splitlines()

    def slurm(self, *arguments: str) -> tuple[int, str]:
        return self.run(
            str(DEPLOY / "slurm.sh"),  # from elsewhere, as Slurm does
            *arguments,
            SLURM_SUBMIT_DIR=str(self.repository),
            SLURM_JOB_ID="41234",
            SLURM_JOB_NODELIST="big[1-2]",
            SLURM_JOB_NUM_NODES="2",
            SLURM_GPUS_ON_NODE="4",
            SLURM_CPUS_PER_TASK="32",
        )

    def node(self, number: int) -> dict[str, str]:
        return {
            "NODE": str(number),
            "NODES": "2",
            "RANKS": "4",
            "ENDPOINT": "10.0.0.1:29500",
            "CLONE": str(self.root / f"clone{number}"),
            "NAME": "mine",
        }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, tmp_path / "calls", tmp_path / "repository")
    site.calls.mkdir()
    for name, script in STUBS.items():
        stub(tmp_path / "bin" / name, script)
    shutil.copytree(DEPLOY, site.repository / "deploy")
    site.must("git", "init", "--quiet")
    site.must("git", "add", "deploy")
    site.must("git", "commit", "--quiet", "--message=recipes")
    # Like the folder of `make setup`, and found before PATH.
    shutil.copytree(tmp_path / "bin", site.repository / ".venv/bin")
    return site


def kubernetes() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def container() -> dict[str, Any]:
    job = kubernetes()["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"][0]
    found: dict[str, Any] = job["template"]["spec"]["template"]["spec"]["containers"][0]
    return found


def skypilot() -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text(encoding="utf-8"))
    return task


def changed(overrides: list[str], folder: Path) -> Params:
    """params.yaml with each `-S` of a recipe, checked as a stage would."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for override in overrides:
        key, value = override.split("=", 1)
        section, name = key.split(".")
        content[section][name] = yaml.safe_load(value)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_params(path)


def overrides_in(call: str) -> list[str]:
    words = shlex.split(call)
    return [value for option, value in itertools.pairwise(words) if option == "-S"]


@pytest.mark.parametrize("recipe", ["node.sh", "slurm.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_shellcheck_finds_nothing_in(recipe: str) -> None:
    scripts = {"kubernetes.yaml": container()["command"][2], "skypilot.yaml": skypilot()["run"]}
    subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "--shell=bash", "--severity=style", "-"],
        input=scripts.get(recipe) or (DEPLOY / recipe).read_text(encoding="utf-8"),
        text=True,
        check=True,
    )


def test_slurm_trains_alike_on_every_node_and_the_first_alone_evaluates_and_pushes(site: Site, tmp_path: Path) -> None:
    code, text = site.slurm("-S", "train.lr=0.0037")
    assert code == 0, text
    first, second = site.called("0"), site.called("1")
    run = [call for call in first if call.startswith("exp run")]
    assert [f"{call} train" for call in run] == [call for call in second if call.startswith("exp run")]
    assert run[0].startswith("exp run --name slurm-41234 -S ")
    assert "exp push origin slurm-41234" in first
    assert not any("push" in call for call in second)
    assert "pull fetch encode quality split" in first
    assert "pull fetch encode quality split" in second
    launch = changed(overrides_in(run[0]), tmp_path).launch
    assert (launch.nnodes, launch.ranks, launch.rdzv_endpoint) == (2, 4, "big1:21234")
    assert not (site.repository / ".bintally/slurm/slurm-41234").exists()


@pytest.mark.parametrize(("ends_with", "queued_again"), [("143", True), ("255", False)])
def test_slurm_queues_a_job_again_that_was_stopped_but_not_one_that_failed(
    site: Site, ends_with: str, queued_again: bool
) -> None:
    clone = site.repository / ".bintally/slurm/slurm-41234/0"
    clone.mkdir(parents=True)
    (site.calls / "srun_ends_with").write_text(ends_with, encoding="utf-8")
    code, _ = site.slurm()
    assert ("requeue 41234" in site.called("scontrol")) == queued_again
    assert (code == 0) == queued_again
    assert clone.exists()


def test_a_machine_that_is_stopped_waits_until_the_stage_has_saved_and_ends_with_143(site: Site) -> None:
    (site.calls / "wait").touch()
    process = site.start("deploy/node.sh", **site.node(0))
    pid = site.calls / "pid"
    end = time.monotonic() + 20
    while not pid.exists() and time.monotonic() < end:
        time.sleep(0.02)
    # Some schedulers signal every process, some only the first.
    os.kill(int(pid.read_text()), signal.SIGTERM)
    time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=20) == 143
    assert site.called("0")[-1] == "saved"


def test_a_machine_keeps_its_clone_and_voids_the_locks_of_a_run_that_was_killed(site: Site) -> None:
    site.must("deploy/node.sh", **site.node(1), STATE=str(site.root / "state"))
    clone = site.root / "clone1"
    kept, locks = clone / "kept", [clone / ".git/index.lock", clone / ".dvc/tmp/rwlock"]
    for path in (kept, *locks):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    site.must("deploy/node.sh", **site.node(1), STATE=str(site.root / "state"), GIT_URL="https://there/it.git")
    assert kept.exists()
    assert not any(lock.exists() for lock in locks)
    assert (clone / ".bintally/train").resolve() == site.root / "state"
    assert site.must("git", "-C", str(clone), "remote", "get-url", "origin").strip() == "https://there/it.git"


@pytest.mark.parametrize(("known", "left"), [("made", ["exp push origin mine"]), ("pushed", [])])
def test_a_machine_started_again_after_its_work_does_only_what_is_left(site: Site, known: str, left: list[str]) -> None:
    (site.calls / known).write_text("mine-too\nmine\n", encoding="utf-8")
    site.must("deploy/node.sh", **site.node(0))
    assert [call for call in site.called("0") if not call.startswith("exp list")] == left


@pytest.mark.parametrize("kind", KINDS)
def test_kubernetes_objects_have_no_field_that_their_types_do_not_know(kind: str) -> None:
    # These models leave out what they do not know, and check the rest.
    document = kubernetes()[kind]
    assert KINDS[kind].from_dict(document).to_dict() == document


def test_a_field_that_a_pod_does_not_know_would_be_found() -> None:
    document = kubernetes()["TrainingRuntime"]
    pod = document["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["containers"][0]["volumeMount"] = []
    assert KINDS["TrainingRuntime"].from_dict(document).to_dict() != document


def test_kubernetes_passes_on_what_trainer_sets(site: Site, tmp_path: Path) -> None:
    stub(site.repository / "deploy/node.sh", 'echo "$NODE $NODES $RANKS $ENDPOINT $CLONE $*"')
    job = kubernetes()["TrainJob"]
    said = site.must(
        *container()["command"],
        *job["spec"]["trainer"]["args"],
        NAME="lr-37",
        PET_NODE_RANK="1",
        PET_NNODES=str(job["spec"]["trainer"]["numNodes"]),
        PET_NPROC_PER_NODE=str(job["spec"]["trainer"]["numProcPerNode"]),
        PET_MASTER_ADDR="lr-37-node-0-0.lr-37",
        PET_MASTER_PORT="29400",
    )
    assert said.split() == ["1", "2", "4", "lr-37-node-0-0.lr-37:29400", "/runs/lr-37/1", "-S", "train.lr=0.0037"]
    changed(["launch.nnodes=2", "launch.rdzv_endpoint=lr-37-node-0-0.lr-37:29400"], tmp_path)


@pytest.mark.parametrize("name", ["Dockerfile", "serve.Dockerfile"])
def test_images_have_a_base_by_digest_and_an_ordinary_user(name: str) -> None:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    bases = [line for line in lines if line.startswith("FROM ")]
    assert bases and all(re.fullmatch(r"FROM \S+@sha256:[0-9a-f]{64}", base) for base in bases)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]


def test_pods_that_train_are_ordinary_users_and_reached_by_each_other_alone() -> None:
    objects = kubernetes()
    job = objects["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container()["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    policy = objects["NetworkPolicy"]["spec"]
    pods = {"matchLabels": pod["metadata"]["labels"]}
    assert policy == {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": pods}]}],
    }


@pytest.mark.parametrize("name", ["node.sh", "slurm.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_a_recipe_for_several_machines_begins_with_the_network_it_needs(name: str) -> None:
    first = " ".join((DEPLOY / name).read_text(encoding="utf-8").splitlines()[:4])
    assert re.search("network between .* must be trusted", first)


def test_kubernetes_objects_fit_each_other() -> None:
    objects = kubernetes()
    trainer = objects["TrainJob"]["spec"]["trainer"]
    for resources in trainer["resourcesPerNode"].values():
        assert resources["nvidia.com/gpu"] == trainer["numProcPerNode"]
    runtime = objects["TrainingRuntime"]
    assert objects["TrainJob"]["spec"]["runtimeRef"] == {"kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    claim = volumes["runs"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]


def test_skypilot_trains_on_every_machine_from_the_checkpoints_of_its_number(site: Site, tmp_path: Path) -> None:
    task = skypilot()
    script = task["run"].replace("/bintally/", f"{site.repository}/").replace("/checkpoints/", f"{site.root}/kept/")
    for number in (0, 1):
        site.must(
            "bash",
            "-c",
            script,
            NAME="mine",
            SETTINGS=task["envs"]["SETTINGS"],
            SKYPILOT_NODE_RANK=str(number),
            SKYPILOT_NUM_NODES=str(task["num_nodes"]),
            SKYPILOT_NUM_GPUS_PER_NODE="4",
            SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2\n",
        )
        assert (site.root / f"kept/mine/{number}").is_dir()
        # Here both have the same home folder.
        assert (site.root / "runs/mine/.bintally/train").resolve() == site.root / f"kept/mine/{number}"
    runs = [call for number in "01" for call in site.called(number) if call.startswith("exp run")]
    assert runs[1] == f"{runs[0]} train"
    params = changed(overrides_in(runs[0]), tmp_path)
    assert params.launch.rdzv_endpoint == "10.0.0.1:29500"
    assert params.train.lr == 0.0037


def test_skypilot_asks_for_every_variable_that_the_task_uses() -> None:
    task = skypilot()
    text = (DEPLOY / "skypilot.yaml").read_text(encoding="utf-8")
    given = {*task["envs"], *task["secrets"]}
    required = {name for name in given if {**task["envs"], **task["secrets"]}[name] is None}
    assert set(re.findall(r"--(?:env|secret) (\w+)", text)) == required
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= given


def test_every_override_written_in_a_recipe_is_accepted(tmp_path: Path) -> None:
    found = []
    for path in sorted(DEPLOY.iterdir()):
        found += re.findall(r"-S,? '?([\w.]+=[^$\s\]`'\"]+)", path.read_text(encoding="utf-8"))
    assert "train.lr=0.0037" in found
    changed(found, tmp_path)


def test_what_the_image_copies_is_there_and_keys_are_left_out() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".dvc/config.local", ".store", ".venv"} <= set(ignored)
