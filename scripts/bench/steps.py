"""A training step of fc-tanh 3072-200-200-10, 5,000 images, float32, full-batch gradient descent.

The engine's step (a chunk of its scan, with the training loss recorded) beside a hand-written
``jit(scan(value_and_grad + update))`` of the same net, with lmech's product of a layer
(``numerics.matmul``) and with JAX's own, and beside a hand-written in-memory loop in PyTorch; what
a sharpness measurement adds; and the share of this machine's GEMM peak: the step's matmuls count
1.36e10 operations, the peak is the fastest float32 product of XLA, PyTorch and NumPy that is tried
in the same turns: square ones, and the first layer's two.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmech.numerics.matmul import matmul
from lmech.numerics.precision import numerics
from scripts.bench import fc
from scripts.bench.asked import Asked, wanted
from scripts.bench.tables import Cell, Ratio, Table, Target
from scripts.bench.timing import Call, Turns, same_threads, turns

STEPS = 10
SQUARES = ((1024, 1024, 1024), (2048, 2048, 2048))
"""A larger one gained nothing on the machines tried."""
FIRST = ((fc.EXAMPLES, fc.INPUTS, fc.WIDTH), (fc.INPUTS, fc.EXAMPLES, fc.WIDTH))
"""xW and xᵀδ of the first layer, most of a step."""


def gemms(torch: Any, shapes: tuple[tuple[int, int, int], ...]) -> dict[str, tuple[int, Call]]:
    """Name → operations, and a call of a product of [m, k] by [k, n]."""
    found: dict[str, tuple[int, Call]] = {}
    multiply = jax.jit(jnp.matmul)
    draw = np.random.default_rng(0).normal
    for m, k, n in shapes:
        pair = [draw(size=size).astype(np.float32) for size in ((m, k), (k, n))]
        name, count = f"{m} × {k} × {n}", 2 * m * k * n
        found[f"XLA's matmul {name}"] = count, partial(multiply, *map(jnp.asarray, pair))
        found[f"NumPy's matmul {name}"] = count, partial(np.matmul, *pair)
        if torch is not None:
            tensors = map(torch.from_numpy, pair)
            found[f"PyTorch's matmul {name}"] = count, partial(torch.matmul, *tensors)
    return found


def measure(asked: Asked) -> Iterator[Table]:
    """Steps and the share of the peak."""
    torch = wanted("torch")
    threads = same_threads(asked.threads)
    data = fc.images(asked.size(fc.EXAMPLES, 100))
    with numerics():
        ours = fc.engine(data, STEPS)
        calls = {
            "scan": fc.jax_loop(data, STEPS),
            "bare": fc.jax_loop(data, STEPS, matmul),
            "lmech": ours.chunk,
            "sharpness": ours.measurement("sharpness"),
        }
        if torch is not None:
            calls["PyTorch"] = fc.torch_side(torch, data, STEPS).loop
        products = gemms(torch, asked.size((*SQUARES, *FIRST), ((64, 64, 64),)))
        calls |= {name: call for name, (_, call) in products.items()}
        timed = turns(calls, asked.repetitions)
    yield steps(timed, threads, torch is not None)
    yield peak(timed, {name: count for name, (count, _) in products.items()}, len(data.train.y))


def steps(timed: Turns, threads: int, with_torch: bool) -> Table:
    """The step beside those of others."""
    labels = {"lmech": "lmech", "bare": "hand-written jit(scan), JAX, lmech's matmul of a layer"}
    labels["scan"] = "the same with JAX's own matmul"
    if with_torch:
        labels["PyTorch"] = "hand-written loop, PyTorch"
    rows: list[list[Cell]] = []
    for name, label in labels.items():
        wall, cpu = (seconds / STEPS * 1e3 for seconds in timed.middle(name))
        rows.append([label, wall, cpu, *timed.ratio(name, "lmech")])
    if not with_torch:
        rows.append(["hand-written loop, PyTorch", "skipped: pip install torch", *[None] * 3])
    wall, cpu = (seconds * 1e3 for seconds in timed.middle("sharpness"))
    rows.append(["lmech: one sharpness measurement (7 products)", wall, cpu, None, None])
    overhead = Ratio(*(value - 1 for value in timed.ratio("lmech", "bare")[0]))
    measuring = timed.ratio("sharpness", "lmech", STEPS / 50)[0]
    targets = [
        Target(
            *("overhead of the engine's loop over a bare jitted scan", overhead, "≤", 0.02),
            "each step also writes its row of metrics and asks whether it is the last; one round "
            "differs from another by more than this",
        ),
        Target(
            *("a sharpness measurement over the 50 steps between two", measuring, "≤", 0.2),
            "seven products, each as long as the table of the products says",
        ),
    ]
    if with_torch:
        limits = "the first layer's two products take most of a step: XLA's GEMM beside MKL's"
        over = timed.ratio("PyTorch", "lmech")[0]
        targets.insert(0, Target("hand-written PyTorch step over lmech's", over, "≥", 0.9, limits))
    return Table(
        "a training step",
        ("loop", "wall ms", "CPU ms", "wall over lmech's", "CPU over lmech's"),
        rows,
        f"{STEPS} steps a repetition, {len(timed.seconds['lmech'])} repetitions in turns, "
        f"{threads} threads on both sides.",
        tuple(targets),
    )


def peak(timed: Turns, counts: dict[str, int], examples: int) -> Table:
    """Operations a second of the step and of square products."""
    counts = {"lmech": fc.flops(examples) * STEPS, **counts}
    rates = {name: count / timed.middle(name)[0] / 1e9 for name, count in counts.items()}
    best = max((name for name in counts if name != "lmech"), key=rates.__getitem__)
    labels = {"lmech": "training step, matmuls alone counted"}

    def over(name: str, other: str) -> Ratio:
        return timed.ratio(other, name, counts[name] / counts[other])[0]

    rows = [[labels.get(name, name), rate, over(name, best)] for name, rate in rates.items()]
    xla = max((n for n in counts if n.startswith("XLA")), key=rates.__getitem__)
    limits = (
        f"XLA's own fastest product reaches {over(xla, best).median:.2f} of it, the step "
        f"{over('lmech', xla).median:.2f} of XLA's"
    )
    return Table(
        "share of the machine's GEMM peak",
        ("what", "GFLOP/s", f"of the fastest: {best}"),
        rows,
        targets=(
            Target("training step over the GEMM peak", over("lmech", best), "≥", 0.75, limits),
        ),
    )
