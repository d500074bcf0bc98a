import pytest
import torch
from scipy import stats

from vfmbench.randomness import PhiloxNoise, philox4x32, sample_rows

# Known answers of Philox4x32-10 published with Random123.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    words = philox4x32([torch.tensor([value]) for value in counter], key)
    assert tuple(int(word) for word in words) == expected


def test_rows_do_not_depend_on_batch_or_order():
    index = torch.tensor([5, 0, 17])
    whole = PhiloxNoise(3, "sampling", *sample_rows(index, range(4))).normal((2, 3), draw=7)
    alone = PhiloxNoise(3, "sampling", *sample_rows(torch.tensor([17]), [2])).normal((2, 3), draw=7)
    assert torch.equal(whole[2 * 4 + 2], alone[0])


def test_seed_stream_draw_image_and_sample_all_matter():
    def draw(seed=0, stream="a", image=1, sample=2, draw=3):
        return PhiloxNoise(seed, stream, torch.tensor([image]), torch.tensor([sample])).normal((8,), draw)

    base = draw()
    for changed in (draw(seed=1), draw(stream="b"), draw(image=2), draw(sample=3), draw(draw=4)):
        assert not torch.isclose(base, changed).any()


def test_distributions():
    noise = PhiloxNoise(0, "test", torch.arange(200))
    assert stats.kstest(noise.normal((501,), 0).flatten().numpy(), "norm").pvalue > 0.01
    uniform = noise.uniform((501,), 0).flatten()
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 0.01
    assert uniform.max() < 1
    # Rows, draws and pairs inside a row are uncorrelated.
    rows = noise.normal((500,), 1)
    correlations = torch.corrcoef(rows)[~torch.eye(200, dtype=torch.bool)]
    assert correlations.abs().max() < 6 / 500**0.5
    assert abs(torch.corrcoef(torch.stack([rows[:, 0::2].flatten(), rows[:, 1::2].flatten()]))[0, 1]) < 0.02
