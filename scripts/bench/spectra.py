"""Trace and spectral density of the Hessian beside PyHessian, hessian-eigenthings and curvlinops.

fc-tanh 3072-200-200-10 at its first weights, ½ squared error, 5,000 random images, float32, on the
CPU. Accuracy is held equal by the number of products: Hutchinson's estimate from so many random
signs has one law whoever computes it, and so has Lanczos quadrature of one depth from so many
random vectors. That they estimate the same is checked: each trace stands beside lmech's in units of
its standard error, and each density by its mean eigenvalue times P, which is a trace too.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lmech.numerics.precision import numerics
from lmech.observables import spectrum
from scripts.bench import curvature_peers as side
from scripts.bench import fc
from scripts.bench.asked import Asked, wanted
from scripts.bench.tables import Cell, Table, Target
from scripts.bench.timing import Call, same_threads, turns

LIMITS = "the same products: XLA's matrix products beside MKL's (the tables of steps, products)"
SAMPLES = 16
"""Random sign vectors of a trace."""
DENSITY = (2, 64)
"""Random vectors of a density, and the depth from each."""


def measure(asked: Asked) -> Iterator[Table]:
    """The trace, then the density."""
    same_threads(asked.threads)
    warnings.filterwarnings("ignore", "Using backward", UserWarning)  # PyHessian's way
    examples = asked.size(fc.EXAMPLES, 50)
    samples, (runs, depth) = asked.size(SAMPLES, 2), asked.size(DENSITY, (1, 4))
    with numerics():
        yield traces(asked, examples, samples)
        yield densities(asked, examples, runs, depth)


def beside(observable: Any, examples: int) -> tuple[Call, Any]:
    """Lmech's measurement at the first weights, and PyTorch's problem there."""
    bench, data = side.build("random", examples, observable)
    problem = side.torch_problem(data)
    side.move(problem, bench.unravel(bench.first))
    side.check(bench, problem, bench.first)
    memory = bench.init(bench.first)
    return lambda: bench.measure(memory, bench.first, 0)[1], problem


def tools(problem: Any) -> dict[str, Callable[[], Any]]:
    """Name → the tool's Hessian, as each is set up, of what is installed."""
    parameters, data = problem.parameters(), [(problem.x, problem.y)]

    def pyhessian() -> Any:
        problem.model.zero_grad()
        return wanted("pyhessian").hessian(
            problem.model, side.half_squared_error, data=data[0], cuda=False
        )

    def eigenthings() -> Any:
        package = wanted("hessian_eigenthings")
        loss = package.supervised_loss(side.half_squared_error)
        return package.HessianOperator(problem.model, data, loss)

    def curvlinops() -> Any:
        return wanted("curvlinops").HessianLinearOperator(
            problem.model, side.half_mean, parameters, data, check_deterministic=False
        )

    made = {"pyhessian": pyhessian, "hessian_eigenthings": eigenthings, "curvlinops": curvlinops}
    return {name: make for name, make in made.items() if wanted(name) is not None}


def working(calls: dict[str, Call]) -> tuple[dict[str, Call], list[list[Cell]]]:
    """Those that run, and a row for each that does not."""
    kept, rows = {}, []
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # a peer's failure is a finding
            rows.append([name, f"failed: {type(error).__name__}: {str(error)[:80]}"])
        else:
            kept[name] = call
    return kept, rows


def traces(asked: Asked, examples: int, samples: int) -> Table:
    """Hutchinson's trace."""
    ours, problem = beside(spectrum.trace(samples=samples), examples)
    make = tools(problem)
    ways = {
        "pyhessian": lambda: np.mean(make["pyhessian"]().trace(maxIter=samples, tol=0.0)),
        "hessian_eigenthings": lambda: (
            wanted("hessian_eigenthings")
            .hutchinson(make["hessian_eigenthings"](), num_samples=samples)
            .estimate
        ),
        "curvlinops": lambda: wanted("curvlinops").hutchinson_trace(make["curvlinops"](), samples),
    }
    peers, failed = working({name: ways[name] for name in make})
    values = ours()
    own, error = float(values[""]), float(values["error"])
    apart = {name: (float(call()) - own) / (error * 2**0.5) for name, call in peers.items()}
    return table(
        f"trace from {samples} random signs",
        {"lmech": ours, **peers},
        {"lmech": 0.0, **apart},
        "from lmech's, standard errors",
        failed,
        asked,
        f"lmech: {own:.4g} ± {error:.2g}.",
    )


def densities(asked: Asked, examples: int, runs: int, depth: int) -> Table:
    """Stochastic Lanczos quadrature."""
    observable = spectrum.spectral_density(samples=runs, depth=depth)
    ours, problem = beside(observable, examples)
    make, values = tools(problem), ours()
    nodes, weights = (np.asarray(values[name]) for name in ("nodes", "weights"))
    ends = float(nodes.min()), float(nodes.max())
    size = sum(parameter.numel() for parameter in problem.parameters())
    package = {name: wanted(name) for name in make}

    def quadrature() -> Any:
        found = make["pyhessian"]().density(iter=depth, n_v=runs)
        return tuple(np.asarray(part).ravel() for part in found)

    def eigenthings() -> Any:
        found = package["hessian_eigenthings"].spectral_density(
            make["hessian_eigenthings"](), num_runs=runs, lanczos_steps=depth
        )
        nodes, weights = (np.asarray(part) for part in (found.raw_eigenvalues, found.raw_weights))
        return nodes[weights > 0], weights[weights > 0]

    def curvlinops() -> Any:
        found = package["curvlinops"].lanczos_approximate_spectrum(
            make["curvlinops"](), depth, num_repeats=runs, boundaries=ends
        )
        return tuple(np.asarray(part) for part in found)

    ways = {"pyhessian": quadrature, "hessian_eigenthings": eigenthings, "curvlinops": curvlinops}
    peers, failed = working({name: ways[name] for name in make})

    def mean(points: np.ndarray, density: np.ndarray) -> float:
        return float(size * (points * density).sum() / density.sum())

    means = {name: mean(*call()) for name, call in peers.items()}
    return table(
        f"density: depth {depth} from {runs} random vectors",
        {"lmech": ours, **peers},
        {"lmech": mean(nodes, weights), **means},
        "mean eigenvalue × P",
        failed,
        asked,
        "curvlinops is given the spectrum's ends, which it would look for first. It smooths the "
        "density over a grid, which blurs the mean; the others give nodes and weights.",
    )


def table(
    title: str,
    calls: dict[str, Call],
    checks: dict[str, float],
    check: str,
    failed: list[list[Cell]],
    asked: Asked,
    note: str,
) -> Table:
    """Times in turns, with what shows that all estimate the same."""
    timed = turns(calls, asked.repetitions)
    rows: list[list[Cell]] = []
    for name in calls:
        ratios = timed.ratio(name, "lmech")
        rows.append([name, *timed.middle(name), *ratios, checks[name]])
    columns = ("tool", "wall s", "CPU s", "wall over lmech's", "CPU over lmech's", check)
    rows += [[*row, *[None] * (len(columns) - len(row))] for row in failed]
    return Table(
        title,
        columns,
        rows,
        note,
        tuple(
            Target(f"{name} over lmech", timed.ratio(name, "lmech")[0], "≥", 1.0, LIMITS)
            for name in calls
            if name != "lmech"
        ),
    )
