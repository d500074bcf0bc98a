"""The training of photonet: its degradations against SciPy and closed forms, its shares, and what it leaves behind."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.models.features import embedded_space
from vfmbench.models.photonet import PhotoNet
from vfmbench.registry import suites
from vfmbench.training.batches import Batch
from vfmbench.training.photographs import (
    AUGMENTATION_NUMBERS,
    DEGRADATION_NUMBERS,
    PhotographStage,
    augmented,
    degraded,
)
from vfmbench.training.processes import Share
from vfmbench.training.train import train

from .tiny import CPU, QUIET

ROWS, SIZE = 12, 64
FEW = {"steps": 2, "batch_size": 16, "architecture": {"channels": [8, 16], "feature_size": 8}}


class Patches:
    """Eight patches of each of three photographs: one texture a patch, around its photograph's colour."""

    num_photographs = 3
    sha256 = "0" * 64

    def __len__(self):
        return 24

    def photograph(self, positions):
        return positions // 8

    def load(self, positions):
        colours = np.array([[60, 120, 160], [160, 60, 120], [120, 160, 60]])[:, :, None, None]
        patches = []
        for position in positions:
            texture = np.random.default_rng(int(position)).normal(colours[int(position) // 8], 30, (3, SIZE, SIZE))
            patches.append(texture.clip(0, 255).astype(np.uint8))
        return torch.from_numpy(np.stack(patches)), torch.zeros(len(patches), dtype=torch.int64)


@pytest.fixture
def suite():
    suite = suites.get("digits")({})
    suite._shape = (3, SIZE, SIZE)
    suite.training = {"features": {"objective": "photographs", **FEW}}
    suite.dataset = lambda split: Patches()
    return suite


@pytest.fixture
def images():
    """Smooth images well inside the range, so that no noise is clamped."""
    coarse = torch.rand(ROWS, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=True).clamp(0, 1) - 0.5


def numbers(**chosen):
    """Uniform numbers that apply only the degradations named, each with the amounts given to it."""
    columns = {"blur": 0, "noise": 1, "pixelation": 2, "box": 3}
    uniform = torch.rand(ROWS, DEGRADATION_NUMBERS, generator=torch.Generator().manual_seed(1))
    uniform[:, :4] = 0.9
    for name, amounts in chosen.items():
        uniform[:, columns[name]] = 0.1
        uniform[:, 4 + columns[name]] = 1 - amounts
    return uniform


def test_images_that_no_degradation_is_drawn_for_stay_as_they_are(images):
    found, amounts = degraded(images, numbers(), torch.randn(images.shape), 0.5)
    torch.testing.assert_close(found, images)
    assert not amounts.any()


def test_blur_is_scipys_away_from_the_border(images):
    amount = torch.linspace(0.2, 0.9, ROWS)
    found, amounts = degraded(images, numbers(blur=amount), torch.zeros(images.shape), 0.5)
    torch.testing.assert_close(amounts, F.pad(amount[:, None], (0, 3)))
    for row, std in enumerate(3 * amount.double() ** 2):
        expected = gaussian_filter(images[row].double().numpy(), float(std), axes=(1, 2), truncate=8)
        border = 2 + int(5 * std)
        inside = slice(border, SIZE - border)
        np.testing.assert_allclose(found[row, :, inside, inside], expected[:, inside, inside], atol=1e-4)


def test_blur_keeps_a_constant_up_to_the_border():
    grey = torch.full((ROWS, 3, SIZE, SIZE), 0.3)
    found, _ = degraded(grey, numbers(blur=torch.linspace(0, 1, ROWS)), torch.zeros(grey.shape), 0.5)
    torch.testing.assert_close(found, grey)


def test_noise_has_its_standard_deviation(images):
    amount = torch.linspace(0.1, 0.8, ROWS)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    found, amounts = degraded(0.1 * images, numbers(noise=amount), noise, 0.5)
    torch.testing.assert_close(amounts[:, 1], amount)
    torch.testing.assert_close((found - 0.1 * images).std((1, 2, 3)), 0.3 * amount**2, rtol=0.02, atol=0)


def test_pixelation_is_average_pooling(images):
    amount = torch.linspace(0.01, 1, ROWS)
    found, amounts = degraded(images, numbers(pixelation=amount), torch.zeros(images.shape), 0.5)
    assert set((3 * amounts[:, 2]).round().tolist()) == {1, 2, 3}
    for row, level in enumerate((3 * amounts[:, 2]).round().int().tolist()):
        block = 2**level
        expected = F.avg_pool2d(images[row], block).repeat_interleave(block, 1).repeat_interleave(block, 2)
        torch.testing.assert_close(found[row], expected)


def test_the_box_has_its_side_and_one_of_two_colours(images):
    amount = torch.linspace(0.01, 1, ROWS)
    uniform = numbers(box=amount)
    uniform[:, 10] = torch.arange(ROWS) % 2
    found, amounts = degraded(images, uniform, torch.zeros(images.shape), 0.5)
    changed = ((found - images).abs() > 1e-5).any(1)
    side = (0.625 * SIZE * amounts[:, 3]).round()
    torch.testing.assert_close(side, (8 + 32 * amount).round())
    for row in range(ROWS):
        rows, columns = changed[row].any(1).nonzero(), changed[row].any(0).nonzero()
        assert len(rows) == len(columns) == rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == side[row]
        colour = torch.zeros(3) if row % 2 else images[row].mean((1, 2))
        inside = found[row, :, int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
        torch.testing.assert_close(inside, colour[:, None, None].expand_as(inside))


def test_each_degradation_is_drawn_for_its_share():
    uniform = torch.rand(2000, DEGRADATION_NUMBERS, generator=torch.Generator().manual_seed(3))
    _, amounts = degraded(torch.zeros(2000, 1, 8, 8), uniform, torch.zeros(2000, 1, 8, 8), 0.3)
    assert amounts.max() <= 1
    for share in (amounts > 0).float().mean(0):
        assert share == pytest.approx(0.3, abs=0.04)


def test_rows_do_not_depend_on_each_other(images):
    uniform = torch.rand(ROWS, DEGRADATION_NUMBERS, generator=torch.Generator().manual_seed(4))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    whole = degraded(images, uniform, noise, 0.7)
    alone = [degraded(images[row][None], uniform[row][None], noise[row][None], 0.7) for row in range(ROWS)]
    for found, expected in zip(whole, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(expected))


def test_an_augmented_image_is_the_image_or_its_mirror_image_in_other_colours(images):
    uniform = torch.rand(ROWS, AUGMENTATION_NUMBERS, generator=torch.Generator().manual_seed(6))
    images = 0.8 * images
    found = augmented(images, uniform)
    for row in range(ROWS):
        image = images[row].flip(2) if uniform[row, 0] < 0.5 else images[row]
        for channel in range(3):
            gain, level = np.polyfit(image[channel].flatten(), found[row, channel].flatten(), 1)
            assert gain == pytest.approx(0.75 + 0.5 * float(uniform[row, 1 + channel]), abs=1e-4)
            assert level == pytest.approx(0.4 * float(uniform[row, 4 + channel]) - 0.2, abs=1e-4)
    assert augmented(4 * images, uniform).abs().max() == 1


def test_shares_of_a_batch_have_the_batchs_loss(suite):
    stage = PhotographStage(suite, PhotographStage.Options(**FEW), suite.weights, CPU)

    def loss(share):
        value, terms = stage.loss(Batch.draw(0, len(Patches()), 16, torch.Generator().manual_seed(7), share), {})
        return torch.stack([value, *terms.values()])

    parts = torch.stack([loss(Share(part, 2)) for part in range(2)])
    assert not torch.equal(*parts)
    torch.testing.assert_close(parts.mean(0), loss(Share()))


def test_training_fits_photographs_and_amounts(suite):
    stage = PhotographStage(suite, PhotographStage.Options(**FEW), suite.weights, CPU)
    optimiser = torch.optim.Adam([p for network in stage.networks.values() for p in network.parameters()], lr=1e-2)
    history = []
    for step in range(60):
        loss, terms = stage.loss(Batch.draw(step, len(Patches()), 16, torch.Generator().manual_seed(step)), {})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(torch.stack(list(terms.values())))
    first, last = torch.stack(history[:10]).mean(0), torch.stack(history[-10:]).mean(0)
    assert (last < 0.8 * first).all()


def test_the_trained_weights_are_a_feature_space(suite, tmp_path):
    train("features", suite, {}, tmp_path, CPU, False, QUIET)
    weights = suite.with_weights(tmp_path).weights.load("features")
    assert set(weights.entry["test"]) == {
        "retrieval",
        "explained_blur",
        "explained_noise",
        "explained_pixelation",
        "explained_box",
    }
    space = embedded_space("photonet", weights, CPU)
    network = PhotoNet(3, **FEW["architecture"])
    network.load_state_dict(weights.part("photonet"))
    stored, _ = Patches().load(range(5))
    assert space.features(stored).shape == (5, 8)
    torch.testing.assert_close(space.features(stored), network(IMAGES.restore(stored)).detach())


def test_evaluation_of_embeddings_that_are_known(suite):
    stage = PhotographStage(suite, PhotographStage.Options(**FEW), suite.weights, CPU)

    class Waves(Patches):
        def load(self, positions):
            cycles = torch.as_tensor(positions)[:, None] + 4
            waves = (2 * torch.pi * cycles * torch.arange(SIZE) / SIZE).sin()
            images = (127.5 + 80 * waves)[:, None, :, None].expand(-1, 3, -1, SIZE)
            return images.to(torch.uint8), torch.zeros(len(images))

    def spectrum(images):
        """Neither place, contrast, level nor a mirror changes it."""
        rows = images.mean((1, 3))
        return F.normalize(torch.fft.rfft(rows - rows.mean(1, keepdim=True)).abs())

    suite.dataset = lambda split: Waves()
    guesses = {"amounts": lambda features: torch.full((24, 4), 2.0)}
    found = stage.evaluate({"photonet": spectrum, "heads": guesses}, "validation", 24)
    assert found.pop("retrieval") > 0.9
    # A guess outside the amounts' range is worse than their mean.
    assert all(value < 0 for value in found.values())
    constant = stage.evaluate({"photonet": lambda images: torch.zeros(len(images), 1), "heads": guesses}, "validation", 24)
    assert constant["retrieval"] == pytest.approx(1 / 24)


def test_a_data_set_without_photographs_is_refused():
    suite = suites.get("digits")({})
    with pytest.raises(UserError, match="patches of the suite digits do not say which photograph"):
        PhotographStage.check(suite, PhotographStage.Options(**FEW))
