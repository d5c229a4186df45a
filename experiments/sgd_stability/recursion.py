"""SGD near a minimum that fits all examples: a linear recursion, and where it is stable on average.

With one output, the loss ½(f − y)² and g_i the gradient of f at example i, the distance w to the
minimum follows w ← (I − η H_B) w, where H_B is the mean of H_i = g_i g_iᵀ over a minibatch. Its
second moment M = E wwᵀ therefore follows M ← E[(I − ηH_B) M (I − ηH_B)], that is

    T = 1 − 2ηC + η²D,  C(M) = ½(HM + MH),  D(M) = a · (1/n) Σ_i H_i M H_i + b · HMH,

with a and b from how the B examples are drawn (``WEIGHTS``). T is symmetric and maps positive
matrices to such, so its spectral radius is its largest eigenvalue, and is below 1 exactly where

    η < η* = 2 / λ_max(C⁻¹D)

(Mulayoff & Michaeli 2023, arXiv:2306.07850). All of it depends on the Gram matrix K_ij = g_i·g_j
alone: in the basis of its eigenvectors, H is diag(eigenvalues)/n. No JAX here.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped]

Sampling = Literal["replacement", "distinct", "bernoulli"]

WEIGHTS: dict[Sampling, Callable[[int, float], tuple[float, float]]] = {
    "replacement": lambda _, size: (1 / size, 1 - 1 / size),
    "distinct": lambda n, size: ((n - size) / size / (n - 1), n * (size - 1) / size / (n - 1)),
    "bernoulli": lambda n, size: (1 / size - 1 / n, 1.0),
}
"""a and b of n examples: each of the B drawn evenly from all; B that differ; every example with
probability B/n, and the sum divided by B (the sampling of Dexter et al. 2024)."""


class Problem(NamedTuple):
    """The gradients in the basis of the Gram matrix's r eigenvectors with eigenvalues above 0."""

    curvatures: np.ndarray
    """Eigenvalues of H [r]."""
    gradients: np.ndarray
    """g_i as columns [r, n]."""

    @property
    def examples(self) -> np.ndarray:
        """Each example's own curvature |g_i|² [n]; their mean is tr H."""
        return np.square(self.gradients).sum(axis=0)


def problem(gram: np.ndarray) -> Problem:
    """From K [n, n], K_ij = g_i·g_j."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * values[-1]
    gradients = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    return Problem(values[kept] / len(gram), gradients)


def products(own: Problem, moment: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """D(M), M [r, r]: E[H_B M H_B]."""
    (alone, together), (h, g) = weights, own
    along = np.einsum("ri,rs,si->i", g, moment, g, optimize=True)
    return alone * (g * along) @ g.T / g.shape[1] + together * h[:, None] * moment * h


def step(own: Problem, moment: np.ndarray, rate: float, weights: tuple[float, float]) -> np.ndarray:
    """T(M): the second moment after a step of SGD."""
    h = own.curvatures
    drift = (h[:, None] + h) * moment
    return moment - rate * drift + rate**2 * products(own, moment, weights)


def moments(own: Problem, rate: float, weights: tuple[float, float], steps: int) -> np.ndarray:
    """E|w_t|² for t = 0 … ``steps`` [steps + 1], from E w₀w₀ᵀ = I/r."""
    moment = np.eye(len(own.curvatures)) / len(own.curvatures)
    found = [1.0]
    for _ in range(steps):
        moment = step(own, moment, rate, weights)
        found.append(float(np.trace(moment)))
    return np.array(found)


def boundary(own: Problem, weights: tuple[float, float]) -> float:
    """η*: the second moment stays bounded up to here, and grows beyond."""
    h, r = own.curvatures, len(own.curvatures)
    half = np.sqrt((h[:, None] + h) / 2)

    def scaled(flat: np.ndarray) -> np.ndarray:
        return (products(own, flat.reshape(r, r) / half, weights) / half).ravel()

    if r == 1:
        return float(2 / scaled(np.ones(1))[0])
    operator = LinearOperator((r * r, r * r), matvec=scaled, dtype=float)
    start = np.eye(r).ravel()  # the eigenvector is a positive matrix: never orthogonal to it
    return float(2 / eigsh(operator, k=1, v0=start, tol=1e-10, return_eigenvectors=False)[0])


def necessary(trace: float, squares: float, size: float) -> float:
    """tr(H)/B + (1 − 1/B) ‖H‖_F²/tr(H); η times it is at most 2 in a stable minimum.

    From ⟨I, T I⟩ ≤ ⟨I, I⟩ and Σ|g_i|⁴/n ≥ tr(H)², for minibatches with replacement; at B = 1 it is
    tr(H) (Wu & Su 2023). ``squares`` is ‖H‖_F²; ``size`` infinite for the full batch.
    """
    return trace / size + (1 - 1 / size) * squares / trace


def sufficient(own: Problem, weights: tuple[float, float]) -> float:
    """A max_i |g_i|² + b λ₁; wherever η times it is below 2, the second moment shrinks.

    From ⟨M, D M⟩ ≤ (a max_i |g_i|² + b λ₁) ⟨M, C M⟩, by Cauchy–Schwarz.
    """
    return float(weights[0] * own.examples.max() + weights[1] * own.curvatures.max())


def coherence(gram: np.ndarray) -> float:
    """σ = λ₁(S) / max_i λ₁(H_i), S_ij = ‖H_i^½ H_j^½‖_F (Dexter et al. 2024, arXiv:2401.12332).

    Here S_ij = |K_ij|: σ is 1 for orthogonal gradients, n for equal ones.
    """
    return float(np.linalg.eigvalsh(np.abs(gram))[-1] / np.diagonal(gram).max())


def coherent(gram: np.ndarray, size: float) -> float:
    """The learning rate from which the second moment grows for sure, of Dexter et al. 2024.

        η λ₁(H) ≥ min(2, σ / √(n/B − 1)),

    for minibatches of the sampling "bernoulli". Why: T(M) − (a/n) η² H_i M H_i is positive, so the
    moment grows if η² (a/n) |g_i|⁴ ≥ 1, and |g_i|² ≥ nλ₁(H)/σ for the largest; a/n = (n/B − 1)/n².
    """
    n = len(gram)
    sharpness = np.linalg.eigvalsh(gram)[-1] / n
    noise = n / size - 1
    alone = coherence(gram) / np.sqrt(noise) if noise > 0 else np.inf
    return float(min(2.0, alone) / sharpness)
