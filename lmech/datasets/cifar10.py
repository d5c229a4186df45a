"""CIFAR-10 from the files of its binary version."""

from pathlib import Path

import numpy as np

from lmech.datasets import Data, Examples
from lmech.datasets.files import File, Source, expect_size, locate
from lmech.datasets.transforms import Size, Standardize, prepare

# No checksum of the single files is published, only the archive's.
SOURCE = Source(
    "cifar10/cifar-10-batches-bin",
    (*(File(f"data_batch_{i}.bin") for i in range(1, 6)), File("test_batch.bin")),
    "https://www.cs.toronto.edu/~kriz",
    File("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),
)
RECORD = 1 + 3 * 32 * 32


def read_batch(path: Path) -> Examples:
    """One file: 10,000 records of a label byte and 3,072 pixels, channel by channel, row-major."""
    raw = np.fromfile(path, np.uint8)
    expect_size(path, 10_000 * RECORD, raw.size)
    records = raw.reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return Examples(np.moveaxis(images, 1, -1), records[:, 0])


def cifar10(
    train_size: Size | None = None,
    test_size: Size | None = None,
    standardize: Standardize = "pixel",
    flatten: bool = True,
) -> Data:
    """50,000 and 10,000 colour images, 32 × 32 (Krizhevsky 2009), in the archive's order."""
    *batches, test = (read_batch(path) for path in locate(SOURCE))
    train = Examples(*(np.concatenate([b[field] for b in batches]) for field in (0, 1)))
    return prepare(train, test, train_size, test_size, standardize, flatten)
