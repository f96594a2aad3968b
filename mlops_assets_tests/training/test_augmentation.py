import numpy as np
import pytest
import torch

from mlops_assets.training.augmentation import Augmenter
from mlops_assets.training.config import Augmentation

N = 60
IMAGES = torch.tensor(np.random.default_rng(0).integers(0, 256, (N, 6, 7, 3), dtype=np.uint8))


def varied(**options: object) -> tuple[np.ndarray, np.ndarray]:
    """All images varied in one batch, and the chances that were drawn for them."""
    augmenter = Augmenter.fitted(Augmentation(**options), IMAGES, torch.device("cpu"))
    chances = augmenter.draw(N, torch.Generator().manual_seed(3))
    before = IMAGES.clone()
    result = augmenter(IMAGES, chances)
    assert (result.dtype, result.shape) == (torch.uint8, IMAGES.shape)
    assert torch.equal(IMAGES, before)
    return result.numpy(), chances.numpy()


def one_by_one(chances: np.ndarray, *, flip: bool, crop: int, erase: int) -> np.ndarray:
    """The same as a reader would write it for one image."""
    fill = np.rint(IMAGES.numpy().mean(axis=(0, 1, 2))).astype(np.uint8)
    result = []
    for image, (mirrored, down, right, row, column) in zip(IMAGES.numpy(), chances, strict=True):
        turned = image[:, ::-1] if flip and mirrored else image
        padded = np.pad(turned, ((crop, crop), (crop, crop), (0, 0)), mode="reflect")
        part = padded[crop + down : crop + down + 6, crop + right : crop + right + 7].copy()
        top, left = row - erase // 2, column - erase // 2
        part[max(top, 0) : max(top + erase, 0), max(left, 0) : max(left + erase, 0)] = fill
        result.append(part)
    return np.stack(result)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [0, 1, 5])
@pytest.mark.parametrize("erase", [0, 1, 4, 5])
def test_a_batch_is_varied_as_image_by_image(*, flip: bool, crop: int, erase: int) -> None:
    found, chances = varied(flip=flip, crop=crop, erase=erase)
    assert np.array_equal(found, one_by_one(chances, flip=flip, crop=crop, erase=erase))


def test_every_chance_is_taken() -> None:
    _, chances = varied(flip=True, crop=1, erase=2)
    assert [set(column) for column in chances.T] == [{0, 1}, {-1, 0, 1}, {-1, 0, 1}, set(range(6)), set(range(7))]


def test_half_of_the_images_are_mirrored() -> None:
    found, _ = varied(flip=True)
    same = (found == IMAGES.numpy()).all(axis=(1, 2, 3))
    mirrored = (found == IMAGES.numpy()[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert 15 < mirrored.sum() < 45


def test_the_generator_alone_decides() -> None:
    augmenter = Augmenter.fitted(Augmentation(crop=1), IMAGES, torch.device("cpu"))
    one, other, again = (augmenter.draw(N, torch.Generator().manual_seed(seed)) for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
