"""Following λ₁ along a run: lmech's ``sharpness`` beside its peers, at equal accuracy.

fc-tanh 3072-200-200-10, ½ squared error, 5,000 examples, full batch, float32, on the CPU with the
same number of threads on both sides: CIFAR-10 at the edge of stability (trained there first; --keep
keeps the weights), or random data where CIFAR-10 is not there. Every tool sees the same frames, ten
steps of gradient descent apart. That both sides have the same loss, gradient and Hessian-vector
product is asserted first.

Each tool's settings are tried from the loosest on, until one's median error over the frames is no
larger than lmech's (or than 1e-5, float32's allowance): that is equal accuracy, marked ``=``.
Errors are relative, against ARPACK in float64. Each setting walks the frames beside lmech, so that
all its ratios are of neighbours in time; they are medians over the frames. Cold: each frame from a
random vector. Warm: from the last frame's eigenvector. hessian-eigenthings is of its version 1.
"""

import copy
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from lmech import building, config, member
from lmech.datasets import Data, cifar10, files
from lmech.numerics.precision import numerics
from lmech.observables import Observable
from lmech.observables.curvature import sharpness
from lmech.problem import loss_and_gradient
from scripts.bench import fc
from scripts.bench.asked import Asked, need
from scripts.bench.tables import Cell, Ratio, Table, Target
from scripts.bench.timing import ratio_of, same_threads
from scripts.bench.tracker import kept

torch = need("torch", "torch pyhessian hessian-eigenthings curvlinops-for-pytorch")
nn = torch.nn

OVERRIDES = ("dataset=cifar10", "dataset.train_size=5000", "model.width=200", "observables=[loss]")
EVERY = 10
# Learning rate, and steps before the first frame. CIFAR-10: at the edge of stability. Random data
# is fitted before it gets there: its frames are of progressive sharpening.
RUN = {"random": (0.25, 100), "cifar10": (0.01, 4400)}
# No more is asked of a peer: in float32 PyHessian's vectors are 1e-6 too short (2e-6 in λ₁), and
# hessian-eigenthings' long dot products cost some 5e-6.
FLOOR = 1e-5
MOST = 300
"""Products of power iteration."""

Tree = Any
Tensors = list[Any]
Estimate = tuple[float, int, Any]  # λ₁, products spent, what the next frame starts from


class Bench(NamedTuple):
    """lmech's side: compiled functions of flat parameters w [P]."""

    init: Callable[[jax.Array], Any]
    measure: Callable[[Any, jax.Array, int], tuple[Any, dict[str, jax.Array]]]
    gradient: Callable[[jax.Array], tuple[jax.Array, Tree]]
    product: Callable[[jax.Array, jax.Array], Tree]
    descend: Callable[[jax.Array, float, int], jax.Array]
    unravel: Callable[[jax.Array], Tree]
    first: jax.Array


class Torch(NamedTuple):
    """The same problem in PyTorch; its parameters are set frame by frame."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor

    def parameters(self) -> Tensors:
        """Weights [out, in] and biases, layer by layer."""
        return list(self.model.parameters())

    def loss(self) -> torch.Tensor:
        """Mean over the examples."""
        return half_squared_error(self.model(self.x), self.y)


Run = Callable[[Torch, Any], Estimate]


class Setting(NamedTuple):
    """One way to call a tool."""

    label: str
    run: Run


class Row(NamedTuple):
    """A setting's line of the table: errors are relative, the rest medians over the frames."""

    tool: str
    label: str
    median: float
    worst: float
    products: float
    per_gradient: float
    """Wall time over that of PyTorch's gradient."""
    per_lmech: Ratio
    equal: bool = False


class Walk(NamedTuple):
    """One frame: λ₁, products and seconds of both sides, and of both gradients."""

    ours: Estimate
    theirs: Estimate
    seconds: tuple[float, float]
    gradients: tuple[float, float]


def build(name: str, examples: int, observable: Observable | None = None) -> tuple[Bench, Data]:
    """The problem as lmech composes it, and its data on the host."""
    if name == "random":
        fc.instead(fc.images(examples))
    batch = building.build([config.resolve(config.compose(list(OVERRIDES)))])
    inputs = jax.device_put(jax.tree.map(lambda leaf: leaf[0], batch.inputs))
    on_device = jax.device_put(batch.data)
    state = member.initial_state(batch.program, inputs, on_device)
    first, unravel = ravel_pytree(state.params)
    problem, observable = state.problem, observable or sharpness()

    def at(w: jax.Array, step: Any, inputs: Any, data: Data) -> Any:
        state = member.initial_state(batch.program, inputs, data)
        return state._replace(params=unravel(w), step=jnp.asarray(step, jnp.int32))

    def flat_gradient(w: jax.Array, data: Data) -> tuple[jax.Array, jax.Array]:
        evaluation, gradient = loss_and_gradient(problem, unravel(w), data.train, None)
        return evaluation.loss, ravel_pytree(gradient)[0]

    def product(w: jax.Array, v: jax.Array, data: Data) -> jax.Array:
        return jax.jvp(lambda w: flat_gradient(w, data)[1], (w,), (v,))[1]

    def descend(w: jax.Array, rate: jax.Array, steps: int, data: Data) -> jax.Array:
        return lax.fori_loop(0, steps, lambda _, w: w - rate * flat_gradient(w, data)[1], w)

    init = jax.jit(lambda w, inputs, data: observable.init(at(w, 0, inputs, data)))
    measure = jax.jit(
        lambda memory, w, step, inputs, data: observable.measure(at(w, step, inputs, data), memory)
    )
    gradient, product, descend = (jax.jit(f) for f in (flat_gradient, product, descend))
    return Bench(
        init=lambda w: init(w, inputs, on_device),
        measure=lambda memory, w, step: measure(memory, w, step, inputs, on_device),
        gradient=lambda w: gradient(w, on_device),
        product=lambda w, v: product(w, v, on_device),
        descend=lambda w, rate, steps: descend(w, jnp.asarray(rate, w.dtype), steps, on_device),
        unravel=unravel,
        first=first,
    ), batch.data


def half_squared_error(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean of ½ Σ_c (f_c − y_c)²."""
    return (outputs - y).square().sum(-1).mean() / 2


class HalfMean(nn.Module):
    """The same as a module, as curvlinops asks for one."""

    def forward(self, outputs: Any, y: Any) -> Any:
        """Mean over the examples."""
        return half_squared_error(outputs, y)


half_mean = HalfMean()
half_mean.reduction = "mean"


def torch_problem(data: Data) -> Torch:
    """The same net and data in PyTorch."""
    model = nn.Sequential(
        *(nn.Linear(3072, 200), nn.Tanh()),
        *(nn.Linear(200, 200), nn.Tanh()),
        nn.Linear(200, 10),
    )
    labels = torch.from_numpy(np.asarray(data.train.y, np.int64))
    targets = nn.functional.one_hot(labels, 10).float()
    return Torch(model, torch.from_numpy(np.asarray(data.train.x, np.float32)), targets)


def tensors(tree: Tree) -> Tensors:
    """A tree of lmech's in the order and the layout of PyTorch's parameters."""
    return [
        torch.from_numpy(np.array(array, order="C"))
        for _, layer in sorted(tree.items())
        for array in (np.asarray(layer["kernel"]).T, np.asarray(layer["bias"]))
    ]


def move(side: Torch, tree: Tree) -> None:
    """Set the parameters."""
    with torch.no_grad():
        for parameter, value in zip(side.parameters(), tensors(tree), strict=True):
            parameter.copy_(value)


def flat(parts: Any) -> torch.Tensor:
    """One vector [P], in PyTorch's order."""
    return torch.cat([part.reshape(-1) for part in parts])


def torch_gradient(side: Torch) -> Any:
    """What one step of gradient descent costs."""
    return torch.autograd.grad(side.loss(), side.parameters())


def torch_product(side: Torch) -> Callable[[torch.Tensor], torch.Tensor]:
    """V ↦ Hv for flat vectors: the gradient's graph is built once, each product is a backward."""
    parameters = side.parameters()
    sizes = [parameter.numel() for parameter in parameters]
    gradient = torch.autograd.grad(side.loss(), parameters, create_graph=True)

    def product(v: torch.Tensor) -> torch.Tensor:
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), parameters, strict=True)]
        image = torch.autograd.grad(gradient, parameters, grad_outputs=parts, retain_graph=True)
        return flat(image)

    return product


def check(bench: Bench, side: Torch, w: jax.Array) -> str:
    """That loss, gradient and Hessian-vector product agree to rounding. Raises AssertionError."""
    v = jnp.asarray(np.random.default_rng(1).normal(size=w.shape), w.dtype)
    move(side, bench.unravel(w))
    loss, gradient = bench.gradient(w)
    pairs = {
        "loss": (torch.tensor([float(loss)]), side.loss().detach()[None]),
        "gradient": (flat(tensors(bench.unravel(gradient))), flat(torch_gradient(side))),
        "Hv": (
            flat(tensors(bench.unravel(bench.product(w, v)))),
            torch_product(side)(flat(tensors(bench.unravel(v)))),
        ),
    }
    errors = {name: float((a - b).norm() / a.norm()) for name, (a, b) in pairs.items()}
    if max(errors.values()) > 1e-5:
        raise AssertionError(f"the two sides are not the same problem: {errors}")
    return "lmech and PyTorch differ by " + ", ".join(f"{n} {e:.0e}" for n, e in errors.items())


def arpack(tol: float, warm: bool, dtype: str = "float32", **options: Any) -> Run:
    """SciPy's eigsh on PyTorch's product; ``tol`` is of the residual, relative to λ₁."""

    def run(side: Torch, start: Any) -> Estimate:
        product, spent = torch_product(side), 0

        def matvec(v: np.ndarray) -> np.ndarray:
            nonlocal spent
            spent += 1
            return product(torch.from_numpy(v.astype(dtype, copy=False).reshape(-1))).numpy()

        size = sum(parameter.numel() for parameter in side.parameters())
        operator = LinearOperator((size, size), matvec=matvec, dtype=np.dtype(dtype))
        values, vectors = eigsh(operator, k=1, which="LA", tol=tol, v0=start, **options)
        return float(values[0]), spent, vectors[:, 0] if warm else None

    return run


def references(bench: Bench, side: Torch, frames: np.ndarray) -> np.ndarray:
    """λ₁ of each frame: ARPACK in float64, from a random vector, residual 1e-6 λ₁.

    Its error is at most the residual squared over the gap: below 1e-8 at a gap of 1e-4 λ₁.
    """
    double = Torch(copy.deepcopy(side.model).double(), side.x.double(), side.y.double())
    solve = arpack(1e-6, warm=False, dtype="float64")
    values = []
    for w in frames:
        move(double, bench.unravel(jnp.asarray(w)))
        values.append(solve(double, None)[0])
    return np.asarray(values)


@contextmanager
def counted() -> Iterator[list[int]]:
    """A list of one number: how often ``torch.autograd.grad`` was called inside the block."""
    calls, original = [0], torch.autograd.grad

    def grad(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return original(*args, **kwargs)

    with mock.patch.object(torch.autograd, "grad", grad):
        yield calls


def pyhessian(package: ModuleType, most: int) -> dict[str, list[Setting]]:
    """Power iteration from a random vector; it stops when λ₁ changes by less than ``tol``."""

    def power(tol: float, iterations: int) -> Run:
        def run(side: Torch, _: Any) -> Estimate:
            side.model.zero_grad()
            with counted() as calls:
                hessian = package.hessian(
                    side.model, half_squared_error, data=(side.x, side.y), cuda=False
                )
                (value,), _ = hessian.eigenvalues(maxIter=iterations, tol=tol)
            side.model.zero_grad()  # its gradients hold their graph: a cycle, never freed
            return value, calls[0], None

        return run

    tolerances = ((1e-2, 100), (1e-3, 100), *((tol, most) for tol in (1e-4, 1e-5, 1e-6, 1e-7)))
    settings = [Setting(f"tol={tol:.0e} maxIter={n}", power(tol, n)) for tol, n in tolerances]
    settings[1] = settings[1]._replace(label="defaults: " + settings[1].label)
    return {"PyHessian power": settings}


def eigenthings(package: ModuleType, most: int) -> dict[str, list[Setting]]:
    """Lanczos of a fixed length; power iteration that stops at a residual of ``tol`` λ₁."""

    def operator(side: Torch) -> Any:
        loss = package.supervised_loss(half_squared_error)
        return package.HessianOperator(side.model, [(side.x, side.y)], loss)

    def lanczos(steps: int) -> Run:
        def run(side: Torch, _: Any) -> Estimate:
            result = package.lanczos(operator(side), k=1, max_iter=steps, which="LA")
            return float(result.eigenvalues[0]), result.iterations, None

        return run

    def power(tol: float, iterations: int, warm: bool) -> Run:
        def run(side: Torch, start: Any) -> Estimate:
            value, vector, _, spent, _ = package.power_iteration_one(
                operator(side), max_iter=iterations, tol=tol, init=start
            )
            return value, spent, vector if warm else None

        return run

    lengths = (2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 160)
    tolerances = ((1e-1, 100), (1e-2, 100), (1e-4, 100), (1e-3, most), (1e-4, most))
    note = {2: "default: ", (1e-4, 100): "defaults: "}

    def powers(warm: bool) -> list[Setting]:
        return [
            Setting(f"{note.get((tol, n), '')}tol={tol:.0e} max_iter={n}", power(tol, n, warm))
            for tol, n in tolerances
        ]

    return {
        "eigenthings Lanczos": [
            Setting(f"{note.get(n, '')}max_iter={n}", lanczos(n)) for n in lengths
        ],
        "eigenthings power, cold": powers(warm=False),
        "eigenthings power, warm": powers(warm=True),
    }


def curvlinops(package: ModuleType, _: int) -> dict[str, list[Setting]]:
    """Its Hessian as a SciPy operator under ``eigsh``, the way that its documentation has it."""

    def solve(tol: float, warm: bool) -> Run:
        def run(side: Torch, start: Any) -> Estimate:
            data, parameters = [(side.x, side.y)], side.parameters()
            hessian = package.HessianLinearOperator(
                side.model, half_mean, parameters, data, check_deterministic=False
            )
            operator, spent = hessian.to_scipy(), 0

            def matvec(v: np.ndarray) -> np.ndarray:
                nonlocal spent
                spent += 1
                return operator @ v.astype(np.float32, copy=False).reshape(-1)

            counting = LinearOperator(operator.shape, matvec=matvec, dtype=np.float32)
            values, vectors = eigsh(counting, k=1, which="LA", tol=tol, v0=start)
            return float(values[0]), spent, vectors[:, 0] if warm else None

        return run

    tolerances = (1e-1, 1e-2, 1e-3, 1e-4)
    return {
        f"curvlinops + eigsh, {name}": [Setting(f"tol={t:.0e}", solve(t, warm)) for t in tolerances]
        for name, warm in (("cold", False), ("warm", True))
    }


def scipys() -> dict[str, list[Setting]]:
    """ARPACK at its default basis of 20 vectors, and at one of 8 for a warm start's sake."""

    def sweep(warm: bool, **options: int) -> list[Setting]:
        return [
            Setting(f"tol={tol:.0e}", arpack(tol, warm, **options))
            for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
        ]

    return {
        "eigsh, cold": sweep(warm=False),
        "eigsh, warm": sweep(warm=True),
        "eigsh ncv=8, warm": sweep(warm=True, ncv=8),
    }


def peers(most: int) -> tuple[dict[str, list[Setting]], list[str]]:
    """Each tool's settings, the loosest first; and what is not installed."""
    tools, skipped = {}, []
    settings = {
        "pyhessian": pyhessian,
        "hessian_eigenthings": eigenthings,
        "curvlinops": curvlinops,
    }
    for name, made in settings.items():
        try:
            tools |= made(importlib.import_module(name), most)
        except ImportError as error:
            skipped.append(f"{name} ({error})")
    return tools | scipys(), skipped


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Its result, and the wall time of the call."""
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - started


def walk(bench: Bench, side: Torch, frames: np.ndarray, memory: Any, run: Run) -> list[Walk]:
    """Both sides along the frames; ``memory`` is lmech's after its first block.

    What the peer is compared with is timed before and after it, for the sake of a busy machine.
    """
    start, steps = None, []
    for i, row in enumerate(frames):
        w = jnp.asarray(row)
        move(side, bench.unravel(w))

        def ours(memory: Any = memory, w: jax.Array = w, i: int = i) -> tuple[Any, np.ndarray]:
            _, theirs = timed(lambda: torch_gradient(side))
            _, own = timed(lambda: bench.gradient(w))
            result, measured = timed(lambda: bench.measure(memory, w, i))
            return result, np.asarray([measured, own, theirs])

        (memory, values), before = ours()
        (value, spent, start), solved = timed(lambda start=start: run(side, start))
        _, after = ours()
        measured, *gradients = (before + after) / 2
        estimate = (float(values[""]), int(values["products"]), None)
        steps.append(Walk(estimate, (value, spent, None), (measured, solved), tuple(gradients)))
    return steps


def summary(tool: str, label: str, steps: list[Walk], reference: np.ndarray) -> tuple[Row, Row]:
    """The rows of lmech and of the peer, of one walk."""

    def row(name: str, label: str, estimates: list[Estimate], seconds: list[float]) -> Row:
        errors = [abs(e[0] / r - 1) for e, r in zip(estimates, reference, strict=True)]
        return Row(
            tool=name,
            label=label,
            median=statistics.median(errors),
            worst=max(errors),
            products=statistics.median(e[1] for e in estimates),
            per_gradient=statistics.median(
                s / step.gradients[1] for s, step in zip(seconds, steps, strict=True)
            ),
            per_lmech=ratio_of([s / w.seconds[0] for s, w in zip(seconds, steps, strict=True)]),
        )

    ours = row("lmech", "defaults", [s.ours for s in steps], [s.seconds[0] for s in steps])
    theirs = row(tool, label, [s.theirs for s in steps], [s.seconds[1] for s in steps])
    return ours, theirs._replace(equal=theirs.median <= max(ours.median, FLOOR))


def compare(
    bench: Bench, side: Torch, frames: np.ndarray, reference: np.ndarray, memory: Any, most: int
) -> tuple[list[Row], list[Walk], list[str]]:
    """Rows of lmech and of each tool up to equal accuracy or the most products; walks; failures."""
    rows, ours, walks = [], [], []
    tools, skipped = peers(most)
    for tool, settings in tools.items():
        for label, run in settings:
            try:
                steps = walk(bench, side, frames, memory, run)
            except Exception as error:  # a peer's failure is a finding
                skipped.append(f"{tool} {label} failed: {type(error).__name__}: {error}")
                break
            mine, theirs = summary(tool, label, steps, reference)
            rows.append(theirs)
            ours.append(mine)
            walks += steps
            if theirs.equal or theirs.products >= most:
                break
    middle = statistics.median(row.per_gradient for row in ours)
    return [ours[0]._replace(per_gradient=middle, equal=True), *rows], walks, skipped


def trained(bench: Bench, rate: float, before: int, count: int) -> np.ndarray:
    """``count`` frames of a run of gradient descent from lmech's first parameters."""
    frames = [bench.descend(bench.first, rate, before)]
    for _ in range(count - 1):
        frames.append(bench.descend(frames[-1], rate, EVERY))
    return np.stack(frames)


def measure(asked: Asked) -> Iterator[Table]:
    """The settings of each tool up to equal accuracy."""
    threads = same_threads(asked.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "Using backward", UserWarning)  # PyHessian's way
    name, count = asked.size("cifar10", "random"), asked.size(5, 2)
    try:
        files.locate(cifar10.SOURCE)
    except files.DataNotFound:
        name = "random"
    rate, before = RUN[name]
    with numerics():
        bench, data = build(name, asked.size(fc.EXAMPLES, 100))
        side = torch_problem(data)
        paths = [asked.keep and asked.keep / f"{name}{part}.npy" for part in ("-w", "-exact")]
        frames = kept(paths[0], lambda: trained(bench, rate, asked.size(before, 2), count))
        same = check(bench, side, jnp.asarray(frames[0]))
        reference = kept(paths[1], lambda: references(bench, side, frames))
        w = jnp.asarray(frames[0])
        jax.block_until_ready(bench.measure(bench.init(w), w, 0))  # compiles
        memory, began = timed(lambda: bench.init(w))
        _, gradient = timed(lambda: torch_gradient(side))
        most = asked.size(MOST, 3)
        rows, walks, skipped = compare(bench, side, frames, reference, memory, most)
    own = statistics.median(walk.seconds[0] / walk.gradients[0] for walk in walks)
    ratio = statistics.median(walk.gradients[0] / walk.gradients[1] for walk in walks)
    notes = [
        f"{len(frames)} frames, {name} data, {threads} threads. {same}. lmech's measurement takes "
        f"{own:.1f} of its own gradients, and its gradient {ratio:.2f} of PyTorch's; its first "
        f"block, once a run, {began / gradient:.0f} of PyTorch's gradients. = : equal accuracy.",
        *(f"Skipped: {what}." for what in skipped),
    ]
    columns = ("", "tool", "setting", "error of λ₁: median", "worst", "Hessian products")
    yield Table(
        "λ₁ along a run",
        (*columns, "wall over PyTorch's gradient", "wall over lmech's"),
        [cells(row) for row in rows],
        " ".join(notes),
        tuple(
            Target(f"{row.tool} ({row.label}) over lmech", row.per_lmech, "≥", 1.0)
            for row in rows[1:]
            if row.equal
        ),
    )


def cells(row: Row) -> list[Cell]:
    """A row of the table."""
    first = "=" if row.equal else ""
    errors = [row.median, row.worst]
    return [first, row.tool, row.label, *errors, row.products, row.per_gradient, row.per_lmech]
