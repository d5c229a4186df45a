"""MNIST and Fashion-MNIST from their idx files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from lmech.datasets import Data, Examples
from lmech.datasets.files import File, Source, expect_size, locate
from lmech.datasets.transforms import Size, Standardize, prepare

NAMES = tuple(
    f"{split}-{kind}.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def _source(folder: str, url: str, md5s: tuple[str, ...]) -> Source:
    files = tuple(File(name, f"md5:{md5}") for name, md5 in zip(NAMES, md5s, strict=True))
    return Source(folder, files, url)


MNIST = _source(
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_MNIST = _source(
    "fashion_mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)


def read_idx(path: Path) -> np.ndarray:
    """Array of a gzipped idx file of bytes. Raises ValueError if it is not one, or is cut short.

    Format: two zero bytes, type 0x08 (unsigned byte), number of axes, their sizes (big-endian
    int32), then the values.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip file: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes: it starts with {raw[:4]!r}")
    axes = raw[3]
    start = 4 + 4 * axes
    shape = np.frombuffer(raw[4:start].ljust(4 * axes, b"\0"), ">i4")
    expect_size(path, int(np.prod(shape, dtype=np.int64)) + start, len(raw))
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _load(source: Source) -> tuple[Examples, Examples]:
    images, labels, test_images, test_labels = (read_idx(path) for path in locate(source))
    return Examples(images[..., None], labels), Examples(test_images[..., None], test_labels)


def mnist(
    train_size: Size | None = None,
    test_size: Size | None = None,
    standardize: Standardize = "pixel",
    flatten: bool = True,
) -> Data:
    """60,000 and 10,000 digits, 28 × 28 (LeCun et al. 1998)."""
    return prepare(*_load(MNIST), train_size, test_size, standardize, flatten)


def fashion_mnist(
    train_size: Size | None = None,
    test_size: Size | None = None,
    standardize: Standardize = "pixel",
    flatten: bool = True,
) -> Data:
    """60,000 and 10,000 pieces of clothing, 28 × 28 (Xiao et al. 2017)."""
    return prepare(*_load(FASHION_MNIST), train_size, test_size, standardize, flatten)
