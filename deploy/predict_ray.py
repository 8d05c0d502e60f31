"""Ray: score a source of photographs on a cluster, each part of it in a task.

In the repository's root, on a filesystem that the cluster's machines share, with Ray beside the lock's packages
(`uv pip install --require-hashes -r requirements/ray.txt`), on a machine of the cluster or with RAY_ADDRESS:

    python deploy/predict_ray.py s3://BUCKET/PREFIX --to exports/counts --parts 16 --cpus 8

Other options go to `bintally predict`. A part whose machine is lost is scored again on another one.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

RETRIES = 3


def score(part: str, arguments: list[str], folder: Path) -> str:
    """Score one part such as 3/16; the last line that `bintally predict` prints says what is missing.

    Raises RuntimeError with its reason if it fails.
    """
    command = [str(Path(sys.executable).with_name("bintally")), "predict", *arguments, "--part", part]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = done.stdout.splitlines() or [""]
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {lines[-1]}")
    return lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a source of photographs on a Ray cluster.", allow_abbrev=False)
    parser.add_argument("--parts", type=int, required=True, help="number of parts, at least as many as machines")
    parser.add_argument("--only", help="these parts alone, such as 4,7")
    parser.add_argument("--cpus", type=float, default=1, help="cores of each task")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each task")
    options, arguments = parser.parse_known_args()
    parts = [str(number) for number in range(1, options.parts + 1)]
    numbers = options.only.split(",") if options.only else parts
    if unknown := sorted(set(numbers) - set(parts)):
        parser.error(f"--only {','.join(unknown)}: there are no such parts of {options.parts}")
    if not parts:
        parser.error(f"--parts {options.parts}: give at least 1")
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"))
    except ConnectionError as error:
        sys.exit(f"predict_ray.py: there is no Ray cluster to connect to ({error}): set RAY_ADDRESS to one's host:port")
    # A task fails with its machine, or with `bintally predict`, as when a bucket does not answer.
    task = ray.remote(score).options(
        num_cpus=options.cpus, num_gpus=options.gpus, max_retries=RETRIES, retry_exceptions=True
    )
    running = {task.remote(f"{one}/{options.parts}", arguments, Path.cwd()): one for one in numbers}
    failed = []
    while running:
        (finished,), _ = ray.wait(list(running))
        number = running.pop(finished)
        try:
            print(f"part {number} of {options.parts} done; {ray.get(finished)}", flush=True)
        except ray.exceptions.RayError as error:
            failed.append(number)
            reason = str(error).splitlines()[-1]
            print(f"part {number} of {options.parts} failed: {reason}", file=sys.stderr, flush=True)
    if failed:
        missing = ",".join(sorted(failed, key=int))
        sys.exit(f"predict_ray.py: {len(failed)} parts are missing; the same command with --only {missing} scores them")


if __name__ == "__main__":
    main()
