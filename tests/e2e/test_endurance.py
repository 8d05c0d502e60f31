"""Thirty kills of stages and commands and a soak of the server, by the scripts that also measure them."""

import json
import subprocess
import sys

import pytest

from project import ROOT, Project

pytestmark = pytest.mark.slow


def test_whatever_is_killed_at_a_random_moment_ends_with_the_same_bytes_when_it_is_repeated() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/e2e/kills.py", "30"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "30 of 30" in done.stdout, done.stdout + done.stderr


def test_the_server_answers_under_twice_its_load_and_refuses_bad_requests(reproduced: Project) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/soak.py"), "--model", "models", "--load", "60", "--bad", "1000"]
    done = subprocess.run(command, cwd=reproduced.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    load, bad = report["load"], report["bad"]
    assert (load["tracebacks"], bad["tracebacks"]) == (0, 0), done.stderr
    assert load["statuses"]["200"] > 0 and load["statuses"]["429"] > 0
    assert load["accepted_without_answer"] == 0
    assert not any(status.startswith("5") for status in load["statuses"] if "while stopping" not in status)
    assert [process["exit_code"] for process in load["processes"]] == [0, 0]
    assert (bad["server_errors"], bad["no_answer"], bad["no_end"]) == (0, 0, 0)
    assert bad["alive"] and bad["exit_code"] == 0
    assert bad["honest_answers"] > 0
    assert not any(process["live_failed"] for process in [bad, *load["processes"]])
