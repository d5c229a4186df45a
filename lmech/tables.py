"""The abc table: how a tensor's multiplier, initial spread and learning rate go with the width.

Plain arithmetic on exponents (Yang & Hu 2021; Everett et al. 2024); no JAX, so that a config with a
table is checked without it.
"""

from typing import Literal, NamedTuple

from pydantic import FiniteFloat
from typing_extensions import TypedDict  # pydantic cannot check typing's before Python 3.12

Role = Literal["input", "hidden", "output", "vector", "fixed", "constant"]
Family = Literal["sgd", "adam", "muon"]
Alignment = Literal["full", "none"]


class Rates(TypedDict):
    """c by how the optimizer's updates scale: as the gradient, entrywise O(1), orthogonalised."""

    sgd: FiniteFloat
    adam: FiniteFloat
    muon: FiniteFloat


class Row(TypedDict):
    """Exponents of one role: multiplier n^-a, initial spread n^-b, learning rate n^-c."""

    a: FiniteFloat
    b: FiniteFloat
    c: Rates


class Table(TypedDict):
    """A row for each role that grows with the width; what does not has factors of 1."""

    input: Row
    hidden: Row
    output: Row
    vector: Row


class Shift(TypedDict):
    """θ by role."""

    input: FiniteFloat
    hidden: FiniteFloat
    output: FiniteFloat


class Factors(TypedDict):
    """A factor by role."""

    input: FiniteFloat
    hidden: FiniteFloat
    output: FiniteFloat
    vector: FiniteFloat


def factor(factors: Factors | None, role: Role) -> float:
    """The role's; 1 for a tensor that does not grow with the width."""
    return 1.0 if factors is None or role == "fixed" or role == "constant" else factors[role]  # noqa: PLR1714


class Exponents(NamedTuple):
    """What a tensor's factors are powers of n with (minus) these exponents."""

    a: float
    b: float
    c: float
    epsilon: float


# A shift of a by θ divides the gradient by n^θ; what the update keeps of that, c makes up for.
SHIFTED = {"sgd": 2.0, "adam": 1.0, "muon": 1.0}


def exponents(
    table: Table,
    role: Role,
    family: Family,
    shift: Shift,
    alignment: Alignment | None = None,
) -> Exponents:
    """The exponents of a role's tensors, all 0 for one that does not grow.

    The gradient's entries go as n^-g: g = a for the readout, and a + r elsewhere, r = min(a + b, α)
    of the readout, whose entries are the larger of their initial values and of what learning adds.
    A layer's largest stable rate keeps what its update adds to its outputs at O(1): the update's
    entries n^-c (Adam) or n^-(c+g) (SGD), summed over the width with alignment exponent α = 1 where
    they line up with the activations (``full``), ½ where they do not (``none``), 0 where the width
    is not summed over, times n^-a: c = α − a − g (Everett et al. 2024). Raises ValueError for
    ``alignment`` with muon, whose update's spectral norm it is that is O(1).
    """
    if role == "fixed" or role == "constant":  # noqa: PLR1714 mypy narrows by ==
        return Exponents(0.0, 0.0, 0.0, 0.0)
    row, readout = table[role], table["output"]
    theta = 0.0 if role == "vector" else shift[role]
    a, b = row["a"] + theta, row["b"] - theta
    aligned = {"full": 1.0, "none": 0.5, None: 1.0}[alignment]
    arriving = min(readout["a"] + readout["b"], aligned)
    gradient = a if role == "output" else a + arriving
    if alignment is None:
        return Exponents(a, b, row["c"][family] - SHIFTED[family] * theta, gradient)
    if family == "muon":
        raise ValueError("parametrization.alignment is for updates by entries, and muon's are not")
    summed = aligned if role in ("hidden", "output") else 0.0
    return Exponents(a, b, summed - a - (gradient if family == "sgd" else 0.0), gradient)


def depth_rate(family: Family, exponent: float) -> float:
    """A branch's learning rate goes as L to minus this; without depth scaling it is constant."""
    if exponent == 0:
        return 0.0
    return 1 - 2 * exponent if family == "sgd" else 1 - exponent
