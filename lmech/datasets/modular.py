"""Arithmetic modulo a prime, and products in S5: all pairs, of which a run sees a fraction."""

import itertools
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples

Operation = Literal[
    "add", "subtract", "multiply", "divide", "sum_of_squares", "quadratic_form", "s5"
]
INTEGERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "sum_of_squares": lambda a, b: a**2 + b**2,
    "quadratic_form": lambda a, b: a**2 + a * b + b**2,
}


def modular(
    p: Annotated[int, Ge(2)] = 113,
    operation: Operation = "add",
    encoding: Literal["tokens", "one_hot"] = "tokens",
) -> Data:
    """All pairs (a, b) in order, labelled a ∘ b; ``data_fraction`` says how many are for training.

    ``add``, ``subtract``, ``multiply``: modulo p; ``divide``: a/b modulo a prime p, b ≠ 0;
    ``sum_of_squares``: a² + b²; ``quadratic_form``: a² + ab + b²; ``s5``: products of the 120
    permutations of five things (``p`` has no effect). Inputs are tokens "a b =", [N, 3] with p for
    "=", or the two one-hot vectors, [N, 2p]. Raises ValueError for a division without inverses.
    """
    size = 120 if operation == "s5" else p
    a, b = (axis.ravel() for axis in np.meshgrid(*[np.arange(size)] * 2, indexing="ij"))
    if operation == "divide":
        a, b = a[b > 0], b[b > 0]
    labels = (_products() if operation == "s5" else _table(operation, p))[a, b]
    tokens = np.stack([a, b, np.full_like(a, size)], axis=1).astype(np.int32)
    x = tokens if encoding == "tokens" else _one_hot(a, b, size)
    return Data(Examples(x, labels.astype(np.int32)), None, size)


def _table(operation: str, p: int) -> np.ndarray:
    """[p, p]: a ∘ b; of a division by zero, anything."""
    a, b = np.meshgrid(np.arange(p), np.arange(p), indexing="ij")
    if operation != "divide":
        return INTEGERS[operation](a, b) % p
    table = np.zeros((p, p), int)
    products = a * b % p
    if any(len(np.unique(products[:, divisor])) < p for divisor in range(1, p)):
        raise ValueError(f"operation=divide needs a prime p, and {p} is none")
    table[products, b] = a  # (ab)/b = a
    return table


def _products() -> np.ndarray:
    """[120, 120]: the number of the permutation a∘b, i ↦ a(b(i)), in lexicographic order."""
    permutations = list(itertools.permutations(range(5)))
    number = {permutation: n for n, permutation in enumerate(permutations)}
    return np.array([[number[tuple(a[i] for i in b)] for b in permutations] for a in permutations])


def _one_hot(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    identity = np.eye(size)
    return np.concatenate([identity[a], identity[b]], axis=1)
