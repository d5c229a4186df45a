"""Closed forms: the rank of a linear CNN's Hessian, and the scatter of Lanczos quadrature."""

import numpy as np


def cnn_rank(width: int, outputs: int, dimension: int, kernels: tuple[int, int] = (3, 3)) -> int:
    """Rank of ∇²L of a linear CNN with squared loss, at weights and data in general position.

    Valid 1-D convolutions a (1 → m channels, kernel k₁) and B (m → m, k₂), then a readout V at each
    of p = d − s + 1 positions, s = k₁ + k₂ − 1; all in all x ↦ Wx with W = V ∗ B ∗ a, C × d. Then

        rank H = 2((k₁ + s)m − 1) + 1 + min(Cd − 1, (Cp − s)s),

    for m ≥ s, and at d = 10, C = 2, k = 3 it is 16m + 18. With R = ∂L/∂W ≠ 0:

    1. Of H's blocks without the weights' own ∂W, X = ∂²⟨R, W⟩/∂B∂(a, V) has the parts
       δ_ll' M[o, i + j] in (B_oli, a_l'j), with M[o, t] = Σ_cp R[c, p + t] V_cop, of rank k₁m, and
       δ_oo' Σ_j R[c, p + i + j] a_lj in (B_oli, V_co'p), of rank sm. Their column spaces share
       one direction, B ∝ MA (that of the gauge a → ta, V → V/t): rank X = (k₁ + s)m − 1.
    2. B and (a, V) have no curvature in common where X vanishes: rank H is 2 rank X and that of
       what remains on the kernels of X and Xᵀ. Directions B there do not move W.
    3. Directions (a, V) there are the gauge's, (−a, V), which leaves W in place and has curvature
       −2⟨R, W⟩: one; and V' with Σ_cop' R[c, p + t] V'_cop = 0 for all o and t, which move W
       orthogonally to R, in at most Cd − 1 dimensions, and with (Cp − s)s of them at hand.
    """
    first, second = kernels
    s = first + second - 1
    free = (outputs * (dimension - s + 1) - s) * s
    return 2 * ((first + s) * width - 1) + 1 + min(outputs * dimension - 1, free)


def smoothed(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """Σ w N(λ; θ, width²) on a grid, [G]: the density, smoothed by Gaussians."""
    z = (grid[:, None] - nodes) / width
    return np.exp(-(z**2) / 2) @ weights / (width * np.sqrt(2 * np.pi))


def standard_error(
    eigenvalues: np.ndarray, grid: np.ndarray, width: float, probes: int
) -> np.ndarray:
    """Standard deviation of the smoothed density's estimate from random directions, [G].

    Of v even on the sphere of R^P, vᵀf(H)v has mean Σ f(λ)/P and variance 2 Var_λ f/(P + 2), Var_λ
    the variance over the P eigenvalues: v² has a Dirichlet distribution. Lanczos quadrature adds
    no error for polynomials f of degree below twice its depth, and none that counts for a Gaussian
    that is not much narrower than the spectrum over the depth.
    """
    z = (grid[:, None] - eigenvalues) / width
    kernels = np.exp(-(z**2) / 2) / (width * np.sqrt(2 * np.pi))
    return np.sqrt(2 * kernels.var(axis=1) / ((len(eigenvalues) + 2) * probes))
