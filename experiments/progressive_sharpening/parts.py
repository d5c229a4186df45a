"""The examples of quadratic regression and the kernel's moments.

They are apart from the measurements, since a job's identity has this file's text in it.
"""

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples
from lmech.observables import Observable, State, Values, memoryless


def one_hot(count: Annotated[int, Ge(1)] = 1) -> Data:
    """``count`` examples, each with a G and a Q of its own; their targets are label noise alone."""
    examples = Examples(np.eye(count), np.zeros((count, 1)))
    return Data(examples, examples)


def moments() -> Observable:
    """T_k = J Qᵏ Jᵀ of the first example, J = G + θᵀQ: T₀, the tangent kernel, and ``first``, T₁.

    ``residual``: z = f − y.
    """

    def measure(state: State) -> Values:
        params: Any = state.params
        G, Q = params["linear"][0, 0], params["quadratic"][0, 0]  # noqa: N806
        J = G + Q @ params["parameters"]  # noqa: N806
        train = state.data.train
        z = state.problem.apply(state.params, train.x[:1])[0, 0] - train.y[0, 0]
        return {"": J @ J, "first": J @ Q @ J, "residual": z}

    return memoryless(measure)
