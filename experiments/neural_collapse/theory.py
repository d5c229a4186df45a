"""Global minimum of the unconstrained features model with squared loss, no biases."""

from typing import NamedTuple

import numpy as np


class Lengths(NamedTuple):
    """Of each class, [K]: the classifier's vector w_k and the class mean h_k; 0 past collapse."""

    readout: np.ndarray
    means: np.ndarray


def shares(sizes: np.ndarray, readout_decay: float, feature_decay: float) -> np.ndarray:
    """s_k = max(0, 1 − N √(λ_W λ_H / n_k)), [K]: the output w_k·h_k for a class's own label.

    Class k has collapsed to 0 where n_k ≤ N² λ_W λ_H: the smallest classes first.
    """
    return np.maximum(0.0, 1 - sizes.sum() * np.sqrt(readout_decay * feature_decay / sizes))


def uncollapsed(sizes: np.ndarray, readout_decay: float, feature_decay: float) -> Lengths:
    """‖w_k‖ = (n_k λ_H / λ_W)^¼ and ‖h_k‖ = (λ_W / (n_k λ_H))^¼: as the decays go to 0."""
    ratio = sizes * feature_decay / readout_decay
    return Lengths(ratio**0.25, ratio**-0.25)


def lengths(sizes: np.ndarray, readout_decay: float, feature_decay: float) -> Lengths:
    """Where Σᵢ‖Wᵀhᵢ − yᵢ‖²/(2N) + λ_W‖W‖²/2 + λ_H Σᵢ‖hᵢ‖²/2 is least, over W [d, K] and all hᵢ.

    For d ≥ K, one-hot y and classes of ``sizes`` [K], N in all (Dang et al. 2023, theorem on the
    bias-free unconstrained features model; here in the ½-mean loss). All hᵢ of a class are h_k, the
    h_k are orthogonal to each other, w_k is parallel to h_k, and both are √s_k times the lengths
    of ``uncollapsed``. Why: H = (σ/√n) u 1ᵀ and w = τu make ½(τσ − √n)²/N + λ_W τ²/2 + λ_H σ²/2 of
    a class, least at τσ = √n − N√(λ_W λ_H) where that is positive, with λ_W τ² = λ_H σ².
    """
    root = np.sqrt(shares(sizes, readout_decay, feature_decay))
    return Lengths(*(root * full for full in uncollapsed(sizes, readout_decay, feature_decay)))
