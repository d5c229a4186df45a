"""What lmech costs: ratios measured side by side in one run (``python -m scripts.bench --help``).

A module a table: its docstring says what is compared, and its ``measure(asked)`` yields the table's
parts. ``TABLES`` has them in the order in which all run.
"""

import ast
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from scripts.bench.asked import Asked
from scripts.bench.tables import Table

TABLES = {
    "steps": "a training step beside hand-written loops in JAX and PyTorch; share of the GEMM peak",
    "products": "Hessian products in gradients, beside PyTorch's",
    "original": "the loop of locuslab/edge-of-stability, extrapolated to its README's demo",
    "start": "time from command to the first logged step, and memory",
    "sweeps": "sweeps beside Hydra's basic and joblib launchers; planning; writing",
    "modes": "members in turn, side by side, on two devices; what auto chooses, and its cost",
    "ntk": "tangent kernels: time, peak memory, beside neural-tangents",
    "spectra": "trace and spectral density beside PyHessian and curvlinops",
    "curvature_peers": "following λ₁ beside PyHessian, hessian-eigenthings, curvlinops, SciPy",
    "tracker": "the sharpness tracker: cost against error at the edge of stability",
    "mup": "a learning-rate sweep beside microsoft/mup's loop",
    "grokking": "grokking's transformer beside plain PyTorch",
    "loggers": "a sweep with all loggers beside one with none",
    "scaling": "cost against parameters, examples, members, observables; log–log figure",
    "experiments": "how long every experiment takes at its default scale",
    "gpu": "the whole set on one GPU, under ten minutes",
}


def measure(name: str, asked: Asked) -> Iterable[Table]:
    """The parts of a table, as they are measured. Raises Missing."""
    return import_module(f"scripts.bench.{name}").measure(asked)


def about(name: str) -> str:
    """What the table's module says of itself; what it measures need not be installed."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""
