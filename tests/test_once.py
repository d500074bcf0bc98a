"""What a process reads once: suites of equal options, and the hashes of files that stay as they are."""

import hashlib

import pytest

from vfmbench import files
from vfmbench.files import file_sha256
from vfmbench.interfaces import Suite
from vfmbench.registry import forget_suites, load_suite, suites


class Empty(Suite):
    name, task_names, image_shape, dataset, task = "empty", (), (1, 8, 8), None, None


def test_equal_options_give_the_same_suite(monkeypatch):
    built = []

    def factory(options):
        built.append(options)
        return Empty()

    monkeypatch.setitem(suites._registered, "counted", factory)
    first = load_suite("counted", {"data": {"seed": 1, "path": "a"}, "method": {"steps": 2}})
    assert load_suite("counted", {"data": {"path": "a", "seed": 1}, "weights": {}}) is first
    assert load_suite("counted", {"data": {"path": "b"}}) is not first
    assert load_suite("counted") is not first
    assert built == [
        {"data": {"seed": 1, "path": "a"}, "weights": {}},
        {"data": {"path": "b"}, "weights": {}},
        {"data": {}, "weights": {}},
    ]
    forget_suites()
    assert load_suite("counted", {"data": {"path": "b"}}) is not first
    assert len(built) == 4


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read to be hashed."""
    names, real = [], hashlib.file_digest

    def counting(stream, *arguments):
        names.append(stream.name)
        return real(stream, *arguments)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return names


def test_a_file_is_hashed_again_only_when_it_has_changed(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(files, "SETTLED_SECONDS", 0)
    path = tmp_path / "weights"
    for content, expected in ((b"one", 1), (b"another", 2)):
        path.write_bytes(content)
        assert {file_sha256(path) for _ in range(3)} == {hashlib.sha256(content).hexdigest()}
        assert len(reads) == expected
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file_sha256(path)


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, reads):
    path = tmp_path / "weights"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()
    assert len(reads) == 2
