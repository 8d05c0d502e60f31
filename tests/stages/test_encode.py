"""How many processes encode: as many as there are GPUs for, no more than asked for, and never several on a CPU."""

from pathlib import Path

import pytest
import torch

from bintally.params import load_params
from bintally.stages.encode import ranks_here

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.mark.parametrize(("ranks", "gpus", "expected"), [(2, 0, 1), (2, 1, 1), (4, 8, 4), (8, 4, 4)])
def test_every_gpu_that_launch_names_has_a_process(
    monkeypatch: pytest.MonkeyPatch, ranks: int, gpus: int, expected: int
) -> None:
    params = load_params(PARAMS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    launch = params.launch.model_copy(update={"ranks": ranks})
    assert ranks_here(params.model_copy(update={"launch": launch})) == expected
