"""Probabilities by models that have not learned from a bin's group."""

from pathlib import Path

import numpy as np
import pytest

from bintally.model.encoded import MemoryMappedRows
from bintally.model.out_of_fold import out_of_fold

NUMBER, WIDTH = 300, 40


def test_wrong_classes_are_the_least_probable_and_groups_teach_nothing_about_themselves(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    classes = random.integers(3, size=NUMBER)
    views = random.normal(size=(NUMBER, 2, WIDTH)).astype(np.float32)
    views[:, :, :3] += 6 * np.eye(3, dtype=np.float32)[classes][:, None]
    # The rows of a group are the same but for their classes: whoever learns from one is wrong about the other.
    twins = np.arange(0, 40, 2)
    views[twins + 1, :, 3:] = views[twins, :, 3:]
    groups = [f"{row // 2 if row < 40 else row}" for row in range(NUMBER)]
    wrong = np.arange(200, 220)
    recorded = classes.copy()
    recorded[wrong] = (classes[wrong] + 1) % 3
    np.save(tmp_path / "array.npy", views)
    features = MemoryMappedRows(tmp_path / "array.npy")
    found = out_of_fold(features, recorded, groups, seed=1)
    assert found.shape == (NUMBER, 3) and np.allclose(found.sum(1), 1, atol=1e-5)
    of_record = found[np.arange(NUMBER), recorded]
    assert np.isin(np.argsort(of_record)[:20], wrong).mean() > 0.7
    # What is learned of a bin does not depend on what its own group says.
    changed = recorded.copy()
    changed[:2] = (changed[:2] + 1) % 3
    again = out_of_fold(features, changed, groups, seed=1)
    assert np.allclose(again[:2], found[:2], atol=1e-6)
    assert not np.allclose(again, found, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_what_no_other_group_has_is_not_known(tmp_path: Path, groups: int) -> None:
    views = np.random.default_rng(1).normal(size=(8, 1, WIDTH)).astype(np.float32)
    np.save(tmp_path / "array.npy", views)
    classes = np.array([0, 1, 0, 1, 0, 1, 0, 2])
    member = [str(row % groups) for row in range(8)]
    found = out_of_fold(MemoryMappedRows(tmp_path / "array.npy"), classes, member, seed=1)
    assert np.isnan(found[7, 2])
    assert np.isnan(found[:, :2]).all() == (groups == 1)
