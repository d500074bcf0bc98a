"""How images and points are stored, quoted and checked."""

import pytest
import torch

from vfmbench.domains import DOMAINS, IMAGES, POINTS
from vfmbench.errors import UserError
from vfmbench.options import validate
from vfmbench.tasks.suites.definition import SuiteDefinition


def test_uint8_levels_survive_the_round_trip_and_the_rest_is_rounded_and_clamped():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(IMAGES.store(IMAGES.restore(levels)), levels)
    assert IMAGES.store(torch.tensor([-3.0, -1.0, 0.0, 0.0039, 1.0, 2.0])).tolist() == [0, 0, 128, 128, 255, 255]


def test_points_are_stored_as_they_are():
    points = torch.tensor([-300.0, 0.1, 2.5])
    assert torch.equal(POINTS.restore(POINTS.store(points.double())), points)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=str)
def test_numbers_are_stored_and_quoted_in_the_types_that_a_domain_says(domain):
    assert domain.store(torch.zeros(2, dtype=torch.float64)).dtype == domain.stored_dtype
    stored = domain.store(torch.tensor([0.3, 0.3, 0.3]))
    assert stored.to(domain.exact_dtype).mean() == stored[0].to(domain.exact_dtype)
    # A difference of stored numbers times the scale is one of values.
    values = domain.restore(domain.store(torch.tensor([-1.0, 1.0])))
    assert float(domain.store(values).double().diff() * domain.scale) == pytest.approx(2.0)


def test_a_domain_is_asked_for():
    IMAGES.check(IMAGES, "PSNR")
    with pytest.raises(UserError, match=r"^PSNR needs images, and the data are points$"):
        IMAGES.check(POINTS, "PSNR")
    with pytest.raises(UserError, match=r"^modes needs points, and the data are images$"):
        POINTS.check(IMAGES, "modes")


def test_shapes():
    assert POINTS.fits((3, 1, 1))
    assert not POINTS.fits((1, 8, 8))
    assert IMAGES.fits((1, 8, 8))


DEFINITION = {
    "name": "mine",
    "image_shape": [2, 1, 1],
    "latent_shape": [2, 1, 1],
    "num_classes": 0,
    "num_images": 1,
    "num_samples": 1,
    "batch_size": 1,
    "tasks": {},
}


def test_a_suites_file_names_its_domain():
    assert validate(SuiteDefinition, DEFINITION).domain is IMAGES
    assert validate(SuiteDefinition, {**DEFINITION, "domain": "points"}).domain is POINTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain": "audio"}, "domain: .*must be one of images, points, got 'audio'"),
        ({"domain": "points", "image_shape": [3, 8, 8]}, "image_shape is not one of points"),
    ],
)
def test_a_wrong_domain_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        validate(SuiteDefinition, {**DEFINITION, **changes}, "mine.yaml: ")
