"""The inputs of the linear models, by their Gram matrix. No JAX here."""

import numpy as np


def gram(examples: int, cosine: float, spread: float) -> np.ndarray:
    """K [n, n] of inputs with the same cosine between any two of them.

    Their squared norms go evenly from 1 − ``spread`` to 1 + ``spread``: of mean 1, as the trace of
    the Hessian of a linear model with these inputs then is.
    """
    norms = np.sqrt(np.linspace(1 - spread, 1 + spread, examples))
    return np.outer(norms, norms) * ((1 - cosine) * np.eye(examples) + cosine)
