"""Parametrizations in code: a factor for each tensor of the job's model."""

from typing import Any

import jax

from lmech.parametrization import Parametrization, Scales, known, unscaled
from lmech.roles import Model


def spectral(scale: float = 1.0) -> Parametrization:
    """‖W‖₂ and ‖ΔW‖₂ go as √(n_out/n_in); biases start at 0 (Yang, Simon & Bernstein 2023)."""

    def scales(model: Model) -> Scales:
        growth = known(model.growth)

        def start(leaf: Any, spread: float) -> float:
            out, into = leaf.shape[-1], leaf.size // leaf.shape[-1]
            wanted = scale * (out / into) ** 0.5 / (out**0.5 + into**0.5)  # a Gaussian's ‖W‖₂ / σ
            return wanted / spread if leaf.ndim > 1 and spread else 0.0

        def rate(leaf: Any) -> float:
            out, into = leaf.shape[-1], leaf.size // leaf.shape[-1]  # of a bias n and 1
            muon = (out / into) ** 0.5 / growth.built_in(leaf.shape)
            return {"sgd": out / into, "adam": 1 / into, "muon": muon}[growth.family(leaf.shape)]

        init = jax.tree.map(start, model.shapes, model.spread_at(model.width))
        rates = jax.tree.map(rate, model.shapes)
        return unscaled(model.shapes)._replace(init=init, learning_rate=rates)

    return scales
