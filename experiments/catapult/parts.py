"""The data of the catapult: the theory's single point, and real images.

They are apart from the measurements, since a job's identity has this file's text in it.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples
from lmech.datasets.digits import digits


def data(kind: Literal["point", "digits"] = "point", train_size: Annotated[int, Ge(1)] = 1) -> Data:
    """``point``: x = 1 with target 0. ``digits``: the first ``train_size`` images, x/√64."""
    kinds: dict[str, Callable[[int], Data]] = {"point": _point, "digits": _digits}
    return kinds[kind](train_size)


def _point(train_size: int) -> Data:
    """So many copies of it."""
    examples = Examples(np.ones((train_size, 1)), np.zeros((train_size, 1)))
    return Data(examples, examples)


def _digits(train_size: int) -> Data:
    splits = digits(train_size).splits
    scaled = {name: Examples(x / np.sqrt(x.shape[1]), y) for name, (x, y, _) in splits.items()}
    return Data(scaled["train"], scaled["test"])
