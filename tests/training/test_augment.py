"""Augmentation: each change has its drawn strength, for each sample alone, and none changes the count."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from bintally.params import Augment
from bintally.training.augment import DRAWS, Augmentation, draw
from training_helpers import CPU, PARAMS

SIZE = 64
NONE = dict.fromkeys(Augment.model_fields, 0.0)
SHIFT_X, SHIFT_Y, SCALE, ANGLE, GAIN, CONTRAST, RED, GREEN, BLUE, BLUR, NOISE, CUT = range(DRAWS - 1)


def at_full_size(params: Augment) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return partial(Augmentation(params, SIZE, seed=1, device=CPU), side=SIZE)


def augmentation(**strengths: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return at_full_size(Augment(**(NONE | strengths)))


def draws(number: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(draw(number, seed, epoch=0))


def one_draw(**values: float) -> torch.Tensor:
    """Draws of one sample: 0 except those named."""
    result = torch.zeros(1, DRAWS)
    for name, value in values.items():
        result[0, globals()[name.upper()]] = value
    return result


def images(number: int, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high, (number, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def test_the_change_of_a_sample_does_not_depend_on_its_batch() -> None:
    augment = at_full_size(PARAMS.augment)
    photographs, drawn = images(9), draws(9)
    together = augment(photographs, drawn)
    assert together.dtype == torch.float32 and together.shape == photographs.shape
    for at in range(9):
        torch.testing.assert_close(
            augment(photographs[at : at + 1], drawn[at : at + 1])[0], together[at], atol=1e-4, rtol=0
        )
    backwards = augment(photographs.flip(0), drawn.flip(0)).flip(0)
    torch.testing.assert_close(backwards, together, atol=1e-4, rtol=0)


def test_no_strength_changes_nothing() -> None:
    changed = augmentation()(images(5), draws(5))
    assert changed.dtype == torch.float32
    assert torch.equal(changed, images(5).float())


@pytest.mark.parametrize("name", NONE)
def test_each_strength_alone_changes_every_image_and_each_draw_differently(name: str) -> None:
    strongest = {"shift": 0.25, "rotation": 45, "noise": 64}.get(name, 0.5)
    photographs = images(1, 20, 200).expand(8, -1, -1, -1)
    changed = augmentation(**{name: strongest})(photographs, draws(8))
    alike = [(one - other).abs().max() < 0.05 for one in changed for other in (photographs[0].float(), *changed)]
    assert sum(alike) == 8  # each is like itself


def test_the_strongest_changes_stay_on_the_scale() -> None:
    strongest = {"shift": 0.25, "scale": 0.5, "rotation": 45, "light": 0.9, "colour": 0.9, "noise": 64, "blur": 1}
    changed = augmentation(**strongest)(images(40), draws(40))
    assert changed.dtype == torch.float32 and changed.isfinite().all()
    assert changed.min().item() == 0 and changed.max().item() == 255


# --- the count -----------------------------------------------------------------------------------------


def squares(number: int, seed: int) -> NDArray[np.uint8]:
    """Bright squares on dark, apart from each other and from the border, each of another colour."""
    random = np.random.default_rng(seed)
    picture = random.integers(10, 40, (3, SIZE, SIZE), dtype=np.uint8)
    for cell in random.choice(9, number, replace=False):
        top, left = (16 * np.array(divmod(int(cell), 3)) + 13 + random.integers(0, 3, 2)).tolist()
        picture[:, top : top + 6, left : left + 6] = random.integers(180, 250, 3)[:, None, None]
    return picture


def counted(image: torch.Tensor) -> int:
    return int(ndimage.label(image.mean(0).numpy() > 100)[1])


@pytest.mark.parametrize("side", [SIZE, SIZE // 2])
def test_no_change_of_the_repositorys_strengths_changes_the_count(side: int) -> None:
    counts = [at % 10 for at in range(300)]
    pictures = torch.from_numpy(np.stack([squares(count, seed) for seed, count in enumerate(counts)]))
    assert [counted(picture.float()) for picture in pictures] == counts
    smaller, changed = (
        Augmentation(params, SIZE, 1, CPU)(pictures, draws(300), side) for params in (Augment(**NONE), PARAMS.augment)
    )
    assert changed.shape == smaller.shape == (300, 3, side, side)
    for some in (smaller, changed):
        assert [counted(picture) for picture in some] == counts
    # They have moved.
    before, after = (ndimage.center_of_mass(some[9].mean(0).numpy() > 100) for some in (smaller, changed))
    assert math.dist(before, after) > 0.3


# --- shift, rotation, scale ------------------------------------------------------------------------------

CENTRE = (SIZE - 1) / 2


def spot(x: float, y: float) -> torch.Tensor:
    """A soft bright spot ``x`` and ``y`` pixels from the centre."""
    along = torch.arange(SIZE) - CENTRE
    heights = 200 * torch.exp(-((along - x)[None, :] ** 2 + (along - y)[:, None] ** 2) / 8)
    return heights.expand(1, 3, SIZE, SIZE)


def position(image: torch.Tensor) -> tuple[float, float]:
    """The position of the spot, in pixels from the centre."""
    y, x = ndimage.center_of_mass(image[0, 0].numpy())
    return x - CENTRE, y - CENTRE


@pytest.mark.parametrize("drawn", [-0.9, 0.5])
def test_a_shift_is_the_drawn_share_of_the_side(drawn: float) -> None:
    shift = augmentation(shift=0.2)
    x, y = position(shift(spot(2, 5), one_draw(shift_x=drawn)))
    assert abs(x - 2) == pytest.approx(abs(drawn) * 0.2 * SIZE, abs=0.05) and y == pytest.approx(5, abs=0.05)
    back, _ = position(shift(spot(2, 5), one_draw(shift_x=-drawn)))
    assert back - 2 == pytest.approx(2 - x, abs=0.05)
    x, y = position(shift(spot(2, 5), one_draw(shift_y=drawn)))
    assert abs(y - 5) == pytest.approx(abs(drawn) * 0.2 * SIZE, abs=0.05) and x == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("drawn", [-1.0, 0.5])
def test_a_rotation_is_by_the_drawn_degrees(drawn: float) -> None:
    x, y = position(augmentation(rotation=30)(spot(12, 9), one_draw(angle=drawn)))
    assert math.hypot(x, y) == pytest.approx(15, abs=0.05)
    turned = math.degrees(math.atan2(y, x) - math.atan2(9, 12))
    assert abs(turned) == pytest.approx(abs(drawn) * 30, abs=0.2)
    x, y = position(augmentation(rotation=30)(spot(12, 9), one_draw(angle=-drawn)))
    assert math.degrees(math.atan2(y, x) - math.atan2(9, 12)) == pytest.approx(-turned, abs=0.2)


@pytest.mark.parametrize("drawn", [-1.0, 0.5])
def test_a_scale_is_by_the_drawn_share(drawn: float) -> None:
    x, y = position(augmentation(scale=0.4)(spot(9, -6), one_draw(scale=drawn)))
    assert (x, y) == pytest.approx((9 * (1 + 0.4 * drawn), -6 * (1 + 0.4 * drawn)), abs=0.05)


# --- light ---------------------------------------------------------------------------------------------


def test_light_colour_and_contrast_are_by_the_drawn_shares() -> None:
    plain = images(1, 60, 120)
    values = plain.float()
    mean = values.mean()
    torch.testing.assert_close(augmentation(light=0.5)(plain, one_draw(gain=-0.6)), values * 0.7)
    torch.testing.assert_close(augmentation(light=0.5)(plain, one_draw(contrast=0.4)), (values - mean) * 1.2 + mean)
    gains = torch.tensor([1.1, 0.8, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(augmentation(colour=0.2)(plain, one_draw(red=0.5, green=-1)), values * gains)


def test_blur_is_the_drawn_share_of_a_mean_over_three_neighbours_along_either_side() -> None:
    plain = images(1)
    expected = plain.double().numpy()
    inside = (..., slice(1, -1), slice(1, -1))
    for drawn, share in ((-1.0, 0.0), (0.5, 0.6), (1.0, 0.8)):
        got = augmentation(blur=0.8)(plain, one_draw(blur=drawn)).numpy()
        kernel = [share / 3, 1 - 2 * share / 3, share / 3]
        blurred = ndimage.convolve1d(ndimage.convolve1d(expected, kernel, 3), kernel, 2)
        np.testing.assert_allclose(got[inside], blurred[inside], atol=1e-3)


def test_noise_has_the_drawn_deviation_and_is_each_samples_own() -> None:
    grey = torch.full((4, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    drawn = torch.cat([one_draw(noise=noise, cut=cut) for noise, cut in ((-1, 0.1), (0, 0.1), (1, 0.1), (1, -0.7))])
    changes = augmentation(noise=10)(grey, drawn) - 128
    assert not changes[0].any()
    for change, deviation in zip(changes[1:], (5, 10, 10), strict=True):
        assert float(change.std()) == pytest.approx(deviation, rel=0.05)
        assert abs(float(change.mean())) < 0.05 * deviation
    torch.testing.assert_close(changes[2], changes[1] * 2, atol=1e-4, rtol=0)
    correlation = np.corrcoef(changes[2].flatten(), changes[3].flatten())[0, 1]
    assert abs(correlation) < 0.05
