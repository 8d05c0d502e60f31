"""The reference for drift: photographs like validation's rank evenly, others high; equal runs give equal numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bintally.model.encoded import Encoded, Encoding, Kind
from bintally.model.network import CountingNetwork, FeatureDistance, Head, predict_views_and_distances
from bintally.model.views import stack_views
from bintally.training.distance import MAX_PHOTOGRAPHS, PER_COMPONENT, fit_distance
from small import backbone
from training_helpers import CPU, memory_mapped

WIDTH = 512  # of ResNet-18's features


def encoded(array: NDArray[np.float32] | NDArray[np.uint8], folder: Path) -> Encoded:
    kind: Kind = "features" if array.ndim == 3 else "pixels"
    return Encoded(memory_mapped(array, folder), Encoding(kind=kind, image_size=64, digest=""), {})


def network() -> CountingNetwork:
    one = backbone("resnet18")
    return CountingNetwork(one, Head(one.width, 8, 3, ordinal=False, seed=1)).eval()


def correlated(number: int, seed: int) -> NDArray[np.float32]:
    """Features of both views, (number, 2, WIDTH), in which few directions have most of the variance."""
    mixing = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)) * np.geomspace(10, 0.01, WIDTH)[:, None]
    rows = np.random.default_rng(seed).normal(size=(number, 1, WIDTH)) @ mixing
    return (rows + np.random.default_rng(seed + 1).normal(size=(number, 2, WIDTH)) * 0.1).astype(np.float32)


def test_photographs_like_validations_rank_evenly_and_shifted_ones_higher(tmp_path: Path) -> None:
    rows = encoded(correlated(3000, seed=1), tmp_path)
    fitted = fit_distance(network(), True, rows, np.arange(2500), np.arange(2500, 3000), CPU)
    assert fitted
    distance, reference = fitted
    assert (reference.components, reference.photographs, len(reference.quantiles)) == (64, 500, 101)
    assert len(reference.model_dump_json()) < 2000

    def ranks(features: NDArray[np.float32]) -> NDArray[np.float64]:
        return reference.ranks(distance(torch.from_numpy(features.mean(1))).numpy()[:, 0])

    others = correlated(500, seed=9)
    same = ranks(others)
    assert abs(same.mean() - 0.5) < 4 * np.sqrt(2 / 500 / 12)
    assert abs((same > 0.9).mean() - 0.1) < 0.06
    # By a standard deviation of each feature.
    shifted = ranks(others + others.std(0))
    assert shifted.mean() > 0.6


def test_distances_are_mahalanobis_distances_along_the_principal_components(tmp_path: Path) -> None:
    rows = encoded(correlated(60, seed=1), tmp_path)
    fitted = fit_distance(network(), True, rows, np.arange(PER_COMPONENT * 5), np.arange(50, 60), CPU)
    assert fitted
    features = rows.rows.take(np.arange(60)).mean(1).astype(np.float64)
    centred = features - features[:50].mean(0)
    _, singular, axes = np.linalg.svd(centred[:50], full_matrices=False)
    standardised = centred @ axes[:5].T / (singular[:5] / np.sqrt(49))
    expected = np.sqrt((standardised**2).mean(1))
    np.testing.assert_allclose(fitted[0](torch.from_numpy(features)).numpy()[:, 0], expected, rtol=1e-3)
    np.testing.assert_allclose(fitted[1].quantiles[::100], [expected[50:].min(), expected[50:].max()], rtol=1e-3)


@torch.no_grad()
def test_a_network_that_learned_from_pixels_is_measured_as_it_predicts(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (45, 3, 64, 64), dtype=np.uint8)
    one = network()
    fitted = fit_distance(one, True, encoded(pixels, tmp_path), np.arange(30), np.arange(30, 45), CPU)
    assert fitted
    one.distance, reference = fitted
    views = stack_views(torch.from_numpy(pixels[30:]), True)
    distances = predict_views_and_distances(one, views)[2].numpy()[:, 0]
    np.testing.assert_allclose(
        [reference.quantiles[0], reference.quantiles[-1]], [distances.min(), distances.max()], rtol=1e-3
    )


def test_equal_runs_give_equal_numbers_from_a_bounded_number_of_photographs(tmp_path: Path) -> None:
    rows = encoded(correlated(MAX_PHOTOGRAPHS + 500, seed=1), tmp_path)
    every = np.arange(MAX_PHOTOGRAPHS + 500)
    (one, reference), (other, same) = (
        fit_distance(network(), True, rows, every, every, CPU) or pytest.fail("nothing was fitted") for _ in range(2)
    )
    assert reference == same and reference.photographs == MAX_PHOTOGRAPHS
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("features", [correlated(40, seed=1)[: PER_COMPONENT + 3], np.ones((40, 2, WIDTH), np.float32)])
def test_too_few_training_photographs_or_equal_ones_give_no_reference(
    tmp_path: Path, features: NDArray[np.float32]
) -> None:
    train, validation = np.split(np.arange(len(features)), [len(features) - 4])
    assert fit_distance(network(), True, encoded(features, tmp_path), train, validation, CPU) is None


def test_components_without_variance_are_left_out(tmp_path: Path) -> None:
    features = np.zeros((100, 2, WIDTH), np.float32)
    features[:, :, :3] = np.random.default_rng(1).normal(size=(100, 1, 3))
    fitted = fit_distance(network(), True, encoded(features, tmp_path), np.arange(80), np.arange(80, 100), CPU)
    assert fitted and fitted[1].components == 3
    assert isinstance(fitted[0], FeatureDistance) and fitted[0].axes.isfinite().all()
