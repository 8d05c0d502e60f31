"""Batches: every sample once an epoch, independent of the number of ranks, read as stored."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.distributed.process_group import RankContext
from bintally.training.samples import (
    Batch,
    Samples,
    plan,
    shares,
    steps_an_epoch,
    training_batches,
    validation_batches,
)
from training_helpers import CPU, SIZE, WIDTH, feature_samples, pixel_samples


def contexts(ranks: int) -> list[RankContext]:
    return [RankContext(rank, ranks, CPU, is_main=rank == 0) for rank in range(ranks)]


@pytest.mark.parametrize(("samples", "size"), [(100, 32), (97, 32), (64, 32), (5, 32), (33, 32), (7, 1)])
def test_an_epoch_takes_every_sample_once_in_even_batches_of_at_most_that_size(samples: int, size: int) -> None:
    epoch = plan(samples, size, seed=1, epoch=0)
    assert sorted(np.concatenate(epoch.batches).tolist()) == list(range(samples))
    sizes = [len(batch) for batch in epoch.batches]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-samples // size) == steps_an_epoch(samples, size)
    assert len(epoch.flip) == len(epoch.draws) == samples


def test_an_epoch_differs_by_seed_and_number() -> None:
    def drawn(seed: int, epoch: int) -> list[bytes]:
        one = plan(200, 50, seed, epoch)
        return [np.concatenate(one.batches).tobytes(), one.flip.tobytes(), one.draws.tobytes()]

    assert drawn(1, 0) == drawn(1, 0)
    for different in zip(*(drawn(seed, epoch) for seed in (1, 2) for epoch in (0, 1)), strict=True):
        assert len(set(different)) == 4
    one = plan(200, 50, seed=1, epoch=0)
    assert 70 < one.flip.sum() < 130
    assert -1 <= one.draws.min() < -0.99 and 0.99 < one.draws.max() < 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_ranks_and_parts_share_a_batch_out_evenly(ranks: int, parts: int) -> None:
    batch = np.random.default_rng(0).permutation(29)
    shared = [shares(batch, context, parts) for context in contexts(ranks)]
    assert [len(mine) for mine in shared] == [parts] * ranks
    assert sorted(np.concatenate([part for mine in shared for part in mine]).tolist()) == list(range(29))
    sizes = [len(part) for mine in shared for part in mine]
    assert min(sizes) >= 29 // (ranks * parts) and max(sizes) <= -(-29 // (ranks * parts))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_parts_of_a_batch_do_not_depend_on_the_ranks(ranks: int) -> None:
    batch = np.random.default_rng(0).permutation(29)
    alone = shares(batch, contexts(1)[0], 2)
    shared = [shares(batch, context, 2) for context in contexts(ranks)]
    for part in (0, 1):
        np.testing.assert_array_equal(np.concatenate([mine[part] for mine in shared]), alone[part])


TENSORS = [field.name for field in fields(Batch)][1:]
SampleSeen = tuple[int, tuple[bytes, ...]]


def processed(samples: Samples, ranks: int, parts: int, start: int = 0) -> list[list[SampleSeen]]:
    """By step, what the ranks together get of each sample, in the order of the samples."""
    epoch = plan(len(samples.rows), 16, seed=3, epoch=2)
    steps: list[list[SampleSeen]] = [[] for _ in epoch.batches[start:]]
    for context in contexts(ranks):
        batches = list(training_batches(samples, epoch, start, parts, context))
        assert len(batches) == parts * len(steps)
        for at, batch in enumerate(batches):
            tensors = [getattr(batch, name) for name in TENSORS]
            steps[at // parts] += (
                (int(number), tuple(one.numpy().tobytes() for one in values))
                for number, *values in zip(batch.chosen, *tensors, strict=True)
            )
    return [sorted(step) for step in steps]


@pytest.mark.parametrize("pixels", [False, True])
def test_a_step_does_not_depend_on_ranks_parts_and_resumption(tmp_path: Path, pixels: bool) -> None:
    samples = (pixel_samples if pixels else feature_samples)(tmp_path)[0]
    whole = processed(samples, ranks=1, parts=1)
    assert sorted(number for step in whole for number, _ in step) == list(range(len(samples.rows)))
    for ranks in (1, 2, 3, 4):
        for parts in (1, 2):
            assert processed(samples, ranks, parts) == whole
    for done in range(len(whole) + 1):
        assert processed(samples, 2, 2, start=done) == whole[done:]


def joint(batches: list[Batch]) -> Batch:
    tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS}
    return Batch(np.concatenate([batch.chosen for batch in batches]), **tensors)


def test_features_are_of_the_drawn_view_and_pixels_come_unmirrored_with_the_flag(tmp_path: Path) -> None:
    (features, _), (pixels, _) = feature_samples(tmp_path / "features"), pixel_samples(tmp_path / "pixels")
    array = np.load(tmp_path / "features" / "array.npy")
    epoch = plan(len(features.rows), 16, seed=1, epoch=0)
    got = joint(list(training_batches(features, epoch, 0, 1, contexts(1)[0])))
    mirrored = epoch.flip[got.chosen]
    assert 0 < mirrored.sum() < len(mirrored)
    np.testing.assert_array_equal(got.inputs, array[features.rows[got.chosen], mirrored.astype(int)])
    np.testing.assert_array_equal(got.targets, features.classes[got.chosen])
    assert features.lists
    np.testing.assert_array_equal(got.list_features, features.lists.features[got.chosen])
    np.testing.assert_array_equal(got.log_prior, features.lists.log_prior[got.chosen])

    array = np.load(tmp_path / "pixels" / "array.npy")
    epoch = plan(len(pixels.rows), 16, seed=1, epoch=0)
    got = joint(list(training_batches(pixels, epoch, 0, 1, contexts(1)[0])))
    assert got.inputs.dtype == torch.uint8
    np.testing.assert_array_equal(got.inputs, array[pixels.rows[got.chosen]])
    np.testing.assert_array_equal(got.flip, epoch.flip[got.chosen])
    np.testing.assert_array_equal(got.draws, epoch.draws[got.chosen])
    np.testing.assert_array_equal(got.targets, pixels.classes[got.chosen])

    changed = replace(pixels, mirrored=False, lists=None)
    plain = joint(list(training_batches(changed, epoch, 0, 1, contexts(1)[0])))
    assert not plain.flip.any() and plain.log_prior.shape == (len(pixels.rows), 0)


def test_features_may_have_one_view_without_mirroring(tmp_path: Path) -> None:
    samples = feature_samples(tmp_path, mirrored=False)[0]
    got = joint(list(training_batches(samples, plan(len(samples.rows), 16, 1, 0), 0, 1, contexts(1)[0])))
    np.testing.assert_array_equal(got.inputs, np.load(tmp_path / "array.npy")[samples.rows[got.chosen], 0])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_validation_takes_all_views_of_every_sample_once_over_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    monkeypatch.setattr("bintally.training.samples.VALIDATION_BATCH", 7)
    for samples, shape in (
        (feature_samples(tmp_path / "features")[1], (2, WIDTH)),
        (pixel_samples(tmp_path / "pixels")[1], (3, SIZE, SIZE)),
    ):
        batches = [batch for context in contexts(ranks) for batch in validation_batches(samples, context)]
        assert max(len(batch.chosen) for batch in batches) == min(7, -(-len(samples.rows) // ranks))
        chosen = np.concatenate([batch.chosen for batch in batches])
        assert sorted(chosen.tolist()) == list(range(len(samples.rows)))
        inputs = torch.cat([batch.inputs for batch in batches])
        assert inputs.shape[1:] == shape
        np.testing.assert_array_equal(inputs, samples.source.take(samples.rows[chosen]))
        np.testing.assert_array_equal(torch.cat([batch.targets for batch in batches]), samples.classes[chosen])
