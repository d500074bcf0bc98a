"""CIFAR-10 in every form that users have it in."""

import io
import os
import pickle
import shutil
import struct

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from vfmbench.errors import UserError
from vfmbench.tasks.datasets import Cifar10Options, cifar10

SPLITS = ("train", "validation", "test")


def cifar_arrays(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8), [row % 10 for row in range(count)]


def as_png(row: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()


class Python2Pickler(pickle._Pickler):
    """Texts and bytes are both Python 2's `str`, as in the published files."""

    def save_text(self, text):
        content = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_text, str: save_text}  # noqa: RUF012


def write_python_batches(root, module: str = "numpy.core.multiarray"):
    root.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        data, labels = cifar_arrays(6, number)
        file = io.BytesIO()
        Python2Pickler(file, protocol=2).dump({"batch_label": name, "labels": labels, "data": data})
        content = file.getvalue().replace(b"cnumpy._core.multiarray\n", f"c{module}\n".encode())
        (root / name).write_bytes(content)


def original(number: int, row: int) -> torch.Tensor:
    return torch.from_numpy(cifar_arrays(6, number)[0][row].reshape(3, 32, 32))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("below", ["cifar-10-batches-py", "."])
def test_cifar10_as_torchvision_leaves_it(tmp_path, below, module):
    write_python_batches(tmp_path / "data" / "cifar-10-batches-py", module)
    path = tmp_path / "data" if below != "." else tmp_path / "data" / "cifar-10-batches-py"
    test = cifar10(Cifar10Options(path=path), "test")
    images, labels = test.load(range(len(test)))
    assert len(test) == 6
    for name, image, label in zip(test.files, images, labels.tolist(), strict=True):
        part, _, row = name.partition("/")
        assert part == "test"
        assert torch.equal(image, original(5, int(row)))
        assert label == int(row)
    train, validation = (cifar10(Cifar10Options(path=path), split) for split in ("train", "validation"))
    assert sorted([*train.files, *validation.files]) == [f"train/{row:05d}" for row in range(30)]
    for dataset in (train, validation):
        for name, image in zip(dataset.files, dataset.load(range(len(dataset)))[0], strict=True):
            assert torch.equal(image, original(*divmod(int(name[6:]), 6)))
    assert cifar10(Cifar10Options(path=path, seed=1), "test").files != test.files


def test_a_pickle_cannot_run_code(tmp_path):
    write_python_batches(tmp_path / "cifar-10-batches-py")

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(UserError, match="test_batch is not a batch of CIFAR-10"):
        cifar10(Cifar10Options(path=tmp_path), "test")
    assert not (tmp_path / "made").exists()
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"no .*data_batch_3"):
        cifar10(Cifar10Options(path=tmp_path), "train")


def write_parquet(path, count: int, seed: int, column: str, struct_cells: bool):
    data, labels = cifar_arrays(count, seed)
    files = [as_png(row) for row in data]
    cells = [{"bytes": file, "path": None} for file in files] if struct_cells else files
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({column: cells, "label": labels}), path)


@pytest.mark.parametrize(
    ("names", "column", "struct_cells"),
    [
        (("train.parquet", "test.parquet"), "image", False),
        (("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"), "img", True),
    ],
)
def test_cifar10_as_parquet(tmp_path, names, column, struct_cells):
    for seed, (name, count) in enumerate(zip(names, (12, 7), strict=True)):
        write_parquet(tmp_path / name, count, seed, column, struct_cells)
    test = cifar10(Cifar10Options(path=tmp_path), "test")
    images, labels = test.load(range(7))
    data, _ = cifar_arrays(7, 1)
    for name, image, label in zip(test.files, images, labels.tolist(), strict=True):
        row = int(name.removeprefix("test/"))
        assert torch.equal(image, torch.from_numpy(data[row].reshape(3, 32, 32)))
        assert label == row % 10
    train, validation = (cifar10(Cifar10Options(path=tmp_path), split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (6, 6)
    assert not set(train.files) & set(validation.files)


def test_parquet_of_something_else_is_refused(tmp_path):
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "test.parquet")
    with pytest.raises(UserError, match="it has text"):
        cifar10(Cifar10Options(path=tmp_path), "test")
    parquet.write_table(pa.table({"image": [b"a"], "label": [1]}), tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"test/00000 .* cannot be decoded"):
        cifar10(Cifar10Options(path=tmp_path), "test")
    (tmp_path / "test.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="as parquet"):
        cifar10(Cifar10Options(path=tmp_path), "test")


def test_cifar10_as_image_folders(tmp_path):
    classes = [f"class{number}" for number in range(10)]
    for number, row in enumerate(cifar_arrays(40, 0)[0]):
        part, name = ("train", "test")[number % 2], classes[number // 4]
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / part / name / f"{number % 4 // 2}.png").write_bytes(as_png(row))
    test, validation, train = (cifar10(Cifar10Options(path=tmp_path), split) for split in ("test", "validation", "train"))
    assert (len(test), len(validation), len(train)) == (20, 10, 10)
    assert not set(train.files) & set(validation.files)
    assert [f"class{label}" for label in test.load(range(20))[1].tolist()] == [name.partition("/")[0] for name in test.files]
    assert test.load([0])[0].shape == (1, 3, 32, 32)
    shutil.rmtree(tmp_path / "train" / "class3")
    shutil.rmtree(tmp_path / "test" / "class3")
    with pytest.raises(UserError, match="10 classes"):
        cifar10(Cifar10Options(path=tmp_path), "test")
