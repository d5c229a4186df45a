"""What the runs have recorded, and the settings that are compared."""

import numpy as np

from lmech.collecting import Run

WIDTHS, FIVE, EXAMPLES = (10, 20, 40), 5, (150, 600)
SMOOTHING = 0.03
"""Times λ₁: standard deviation of the Gaussians that smooth a density."""


def spectrum(run: Run, step: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of H ↓ and overlaps of their eigenvectors, [P] each, at a step (the last)."""
    at = run.config["steps"] if step is None else step
    names = ("outlier_overlap_eigenvalues", "outlier_overlap_overlaps")
    values, overlaps = (np.asarray(run.column(name)[at]) for name in names)
    return values, overlaps


def gauss_newton(run: Run, step: int) -> np.ndarray:
    """Eigenvalues of the Gauss–Newton matrix ↓ [P] at a step."""
    return np.asarray(run.column("gauss_newton_density_nodes")[step])[::-1]


def class_values(run: Run) -> np.ndarray:
    """Eigenvalues ↓ [C²] of the class means' Gauss–Newton matrix at the end."""
    return np.asarray(run.column("class_curvature_eigenvalues")[run.config["steps"]])


def quadrature(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [probes, depth] of Lanczos quadrature at the end, weights of 1 a probe."""
    probes = run.config["observables"]["spectral_density"]["samples"]
    nodes, weights = (
        np.asarray(run.column(f"spectral_density_{name}")[run.config["steps"]])
        for name in ("nodes", "weights")
    )
    return nodes.reshape(probes, -1), probes * weights.reshape(probes, -1)
