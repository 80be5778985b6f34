import gzip
import struct
from pathlib import Path

import pytest
import torch

from defiance.codecs.events import digit_images, digits, mnist_images
from defiance.errors import DefianceError
from defiance.recordings import data_folder
from defiance.seeding import stream

REAL = data_folder() / "mnist"


def idx(*shape: int, magic: int | None = None, body: bytes | None = None) -> bytes:
    size = 1
    for n in shape:
        size *= n
    head = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape) if magic is None else magic, *shape)
    return head + (bytes(i % 10 for i in range(size)) if body is None else body)


def folder_with(folder: Path, images: bytes, labels: bytes) -> Path:
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def test_digits_need_no_download() -> None:
    images, labels = digit_images("test")
    assert images.shape == (360, 28, 28)
    assert 0 <= images.min() and images.max() <= 1
    assert not images[:, :4].any() and not images[:, :, -4:].any()
    assert sorted(set(labels.tolist())) == list(range(10))
    assert len(digit_images("train")[1]) == 1437
    recordings = digits("test", stream(1, "digits"))
    assert torch.equal(recordings.label, labels)
    assert (recordings.width, recordings.height) == (34, 34)
    assert 2000 < recordings.counts.double().mean() < 6000
    assert recordings.counts.min() > 500


def test_mnist_is_read(tmp_path: Path) -> None:
    images, labels = mnist_images(folder_with(tmp_path, idx(3, 28, 28), idx(3)), "test")
    assert images.shape == (3, 28, 28)
    assert images.dtype == torch.uint8
    assert images.flatten()[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(3, 28, 28)[:-1], idx(3), "images.*3 items take 2352 bytes after the header, found 2351"),
        (idx(3, 28, 28) + b"x", idx(3), "found more"),
        (idx(3, 28, 28), idx(4), "3 images of MNIST with 4 labels"),
        (idx(3, 28, 28), idx(3, body=b"\x01\x02\x0a"), "a label of MNIST is 10"),
        (idx(3, 28, 28, magic=0x0D03), idx(3), "not an idx file"),
        (idx(3, 27, 28), idx(3), "not an idx file"),
        (b"", idx(3), "not an idx file"),
        (idx(2**32 - 1, 28, 28, body=b""), idx(3), "4294967295 items at offset 4, more than"),
    ],
)
def test_damaged_mnist_is_refused(tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
    with pytest.raises(DefianceError, match=message):
        mnist_images(folder_with(tmp_path, images, labels), "test")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefianceError, match="train-images-idx3-ubyte.gz: cannot be read"):
        mnist_images(tmp_path, "train")
    folder_with(tmp_path, idx(3, 28, 28), idx(3))
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(DefianceError, match="cannot be read"):
        mnist_images(tmp_path, "test")
    path.write_bytes(gzip.compress(idx(3, 28, 28))[:-9])
    with pytest.raises(DefianceError, match="cannot be read"):
        mnist_images(tmp_path, "test")


@pytest.mark.skipif(not REAL.is_dir(), reason="no data: MNIST")
def test_the_real_mnist_is_whole() -> None:
    images, labels = mnist_images(REAL, "test")
    assert images.shape == (10_000, 28, 28)
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
