"""The compute-optimal exponents of power-law random features (Paquette et al. 2024).

The loss of one-pass SGD is, up to constants, a sum of powers of the size d and of time γr, r the
number of examples and γ the learning rate, which scales as 1/tr K, d^min(0, 2α − 1):

    F_0 ~ d^{−2α + max(0, 1 − 2β)}      what the features cannot express
    F_pp ~ (γr)^{−(2α + 2β − 1)/(2α)}   gradient flow along the population's eigenvectors
    F_ac ~ d^{−1} (γr)^{−1 + 1/(2α)}    distorted eigenvectors (2α > 1, 2β > 1)
    K_pp ~ γ (γr)^{−2 + 1/(2α)}         the noise of SGD (α > ¼)

At compute f = d·r and d = f^x each is a power of f, linear in x. The optimum is the x at which the
largest of them is smallest.
"""

from itertools import combinations
from typing import NamedTuple

PHASES = ("Ia", "II", "III", "IVa")
ISOTROPIC = "isotropic"


class Exponents(NamedTuple):
    """d* ~ f^size and P* ~ f^loss."""

    size: float
    loss: float


def phase(alpha: float, beta: float) -> str | None:
    """The phase's name, ``isotropic`` at α = 0; None for those that are not looked at here."""
    conditions = {
        ISOTROPIC: alpha == 0,
        "Ia": 2 * alpha > 1 > 2 * beta,
        "II": 2 * beta > 1 and alpha > beta,
        "III": beta > alpha > 1 / 2,
        "IVa": 1 - 2**-0.5 < alpha < 1 / 2 < beta,
    }
    return next((name for name, there in conditions.items() if there), None)


def terms(alpha: float, beta: float) -> dict[str, tuple[float, float]]:
    """By name the powers (of d, of r) of each term. Raises ValueError unless α > ¼, α + β > ½."""
    if alpha <= 1 / 4 or alpha + beta <= 1 / 2:
        raise ValueError(f"no such terms at alpha={alpha}, beta={beta}")
    slowed = min(0.0, 2 * alpha - 1)
    powers = {
        "F_0": (-2 * alpha + max(0.0, 1 - 2 * beta), 0.0),
        "F_pp": _of_time(0.0, -(2 * alpha + 2 * beta - 1) / (2 * alpha), slowed),
        "K_pp": _of_time(slowed, -2 + 1 / (2 * alpha), slowed),
    }
    if 2 * alpha > 1 and 2 * beta > 1:
        powers["F_ac"] = _of_time(-1.0, -1 + 1 / (2 * alpha), slowed)
    return powers


def _of_time(d: float, time: float, slowed: float) -> tuple[float, float]:
    """Powers of d and r of d^d (γr)^time."""
    return d + slowed * time, time


def compute_optimal(alpha: float, beta: float) -> Exponents:
    """Exponents of the compute-optimal size and loss, exactly: a linear program in one variable."""
    lines = [(r, d - r) for d, r in terms(alpha, beta).values()]  # at x: value, slope
    crossings = [
        (p - q) / (n - m) for (p, m), (q, n) in combinations(lines, 2) if abs(n - m) > 1e-12
    ]
    places = [0.0, 1.0, *(x for x in crossings if 0 < x < 1)]
    loss, size = min((max(p + m * x for p, m in lines), x) for x in places)
    return Exponents(size, loss)
