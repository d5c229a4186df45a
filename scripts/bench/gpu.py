"""The whole set on one GPU, in less than ten minutes: ``python -m scripts.bench gpu``.

Whole sweeps by lmech's own command, from its words to the result, compilation included: the
edge-of-stability run of the paper's scale to 99 % training accuracy; grokking modulo 113 to a test
loss below 0.01; mup's transfer sweep of 240 runs at two epochs (20 rates × 2 parametrizations × 6
widths: 6 programs a parametrization at most); 64 runs on digits as lanes of one program beside the
same 64 one after another. Then Hessian products in gradients, operations a second beside the chip's
limits at float32 and TF32, and the sharpness at each matmul precision.

``--dry`` runs all of it at tiny sizes on whatever JAX finds. Where CIFAR-10 is not there, random
images of its size take its place, and the table says so: their times are CIFAR-10's, not their
losses. A GPU reserves memory at its start; set XLA_PYTHON_CLIENT_PREALLOCATE=false to share it.
"""

import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import lmech
from lmech import building, cli, config, member, reproducing
from lmech.datasets import cifar10, files
from lmech.numerics import curvature, krylov
from lmech.numerics.precision import numerics
from lmech.problem import total_loss
from scripts.bench import fc
from scripts.bench.asked import Asked
from scripts.bench.tables import Cell, Table, Target, usage
from scripts.bench.timing import ratio_of, spent, turns

LIMITS = {
    "H100 PCIe": (51.0, 378.0),
    "H100": (67.0, 494.0),
    "H200": (67.0, 494.0),
    "A100": (19.5, 156.0),
    "L40": (90.5, 90.5),
    "V100": (15.7, 15.7),
}
"""TFLOP/s by the makers' data sheets: float32 without tensor cores, dense TF32; names as JAX's."""
PRECISIONS = ("highest", "high", "default")
"""JAX's names; on a GPU highest is float32, high and default TF32."""
MINUTES = 10


def measure(asked: Asked) -> Iterator[Table]:
    """All of it, or that there is no GPU."""
    device = jax.devices()[0]
    if device.platform != "gpu" and not asked.quick:
        yield Table(
            "one GPU", (), (), "**Not measured: no GPU at hand.** --dry runs it on the CPU."
        )
        return
    began, where = usage().wall, f"{device.device_kind}, {device.platform}."
    with tempfile.TemporaryDirectory() as room:
        yield sweeps(Path(room), asked, where)
        yield lanes(Path(room), asked)
    yield products(asked)
    yield speed(asked, device.device_kind)
    yield sharpness(asked)
    minutes = (usage().wall - began) / 60
    yield Table(
        "all of it",
        ("minutes",),
        [[minutes]],
        targets=(Target("minutes on one GPU", minutes, "≤", MINUTES),),
    )


def run(folder: Path, words: Sequence[str]) -> tuple[float, Path]:
    """Seconds of a command in this process, and its sweep's folder."""
    folder.mkdir(parents=True)
    with contextlib.chdir(folder):
        seconds, _ = spent(lambda: cli.main([*words, "logger=none"]))
    (sweep,) = folder.glob("outputs/*/*/summary.json")
    return seconds, sweep.parent


def told(sweep: Path) -> dict[str, Any]:
    """The parts of a sweep's time, seconds."""
    return json.loads((sweep / "summary.json").read_text(encoding="utf-8"))["seconds"]


def images(examples: int) -> str:
    """CIFAR-10, or random images in its place; says which."""
    try:
        files.locate(cifar10.SOURCE)
    except files.DataNotFound:
        fc.instead(fc.images(examples))
        return "random images in CIFAR-10's place"
    return "CIFAR-10"


def sweeps(room: Path, asked: Asked, where: str) -> Table:
    """Three of the published runs, from command to result."""
    rows: list[list[Cell]] = []
    for name, (words, column, bound) in commands(asked).items():
        fc.instead(None)
        examples = 50_000 if "transfer" in name else fc.EXAMPLES
        note = "its own" if "grokking" in name else images(examples)
        seconds, sweep = run(room / name.split()[0], words)
        parts, found = told(sweep), lmech.collect(sweep)
        reached: Cell = None
        if column:
            seen = found.dropna(subset=[column])
            hit = seen[seen[column] < bound] if bound < 0.5 else seen[seen[column] > bound]
            reached = int(hit["step"].min()) if len(hit) else "not reached"
        runs = found["job"].nunique()
        steps = int(found["step"].max()) + 1
        rows.append([name, note, runs, steps, seconds, parts["compile"], parts["run"], reached])
    columns = ("what", "data", "runs", "steps", "wall s", "of it compiling", "of it batches")
    return Table("from command to result", (*columns, "step of the goal"), rows, where)


def commands(asked: Asked) -> dict[str, tuple[list[str], str, float]]:
    """Name → words, and the column and value of its goal, if it has one."""
    paper = reproducing.load("edge_of_stability", "paper", []).overrides
    paper = [word for word in paper if "gradient_flow" not in word]
    paper += ["observables=[loss,accuracy,sharpness]", "seed=0"]
    grokking = [*reproducing.load("grokking", "paper", []).overrides, "data_fraction=0.3", "seed=0"]
    grokking += ["stop.test_loss=0.01"]
    widths = asked.size("128,256,512,1024,2048,4096", "8,16")
    rates = asked.size("geomspace(2**-8, 1, 20)", "0.1,0.2")
    transfer = ["-m", *reproducing.load("lr_transfer", "mup", []).overrides, "seed=0"]
    transfer += [f"model.width={widths}", f"optimizer.learning_rate={rates}"]
    if asked.quick:
        paper += ["dataset.train_size=100", "model.width=8", "steps=20"]
        grokking += ["dataset.p=23", "model.width=8", "model.heads=2", "steps=20"]
        transfer += ["steps=4", "dataset.train_size=200"]
    return {
        "edge of stability to 99 %, CIFAR-10": (paper, "train_accuracy", 0.99 - 1e-6),
        "grokking, p = 113, to test loss 0.01": (grokking, "test_loss", 0.01),
        "transfer-mup: 120 of mup's 240 runs, two epochs of CIFAR-10": (
            [*transfer, "parametrization=mup", "parametrization.base_width=256"],
            "",
            0.0,
        ),
        "transfer-sp: the other 120": ([*transfer, "parametrization=sp"], "", 0.0),
    }


def lanes(room: Path, asked: Asked) -> Table:
    """Digits side by side and one after another; batches alone, without start and compilation."""
    fc.instead(None)
    runs = asked.size(64, 3)
    words = ("-m", "dataset=digits", "observables=[loss]", f"seed=range({runs})")
    words = (*words, "model.width=64", f"steps={asked.size(1000, 5)}")
    ways = {
        "lanes of one program": ("execution.mode=vmap",),
        "one after another": ("execution.mode=map", "execution.lanes=1"),
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(min(asked.repetitions, 5)):
        for way, more in ways.items():
            seconds, sweep = run(room / f"{way}{turn}", (*words, *more))
            found[way].append((seconds, told(sweep)["run"]))
    first = found["lanes of one program"]
    rows: list[list[Cell]] = [
        [
            way,
            *(statistics.median(values) for values in zip(*times, strict=True)),
            ratio_of([other[1] / own[1] for own, other in zip(first, times, strict=True)]),
        ]
        for way, times in found.items()
    ]
    columns = ("way", "wall s", "batches s", "batches over those of lanes")
    return Table(f"{runs} runs on digits", columns, rows)


def products(asked: Asked) -> Table:
    """Hessian products, in gradients each."""
    rows: list[list[Cell]] = []
    data = fc.images(asked.size(fc.EXAMPLES, 50))
    with numerics():
        for width, vectors in asked.size(((200, 1), (200, 4), (4096, 1), (4096, 4)), ((8, 2),)):
            gradient, product = fc.products((width, width), "tanh", data, vectors, None)
            timed = turns({"gradient": gradient, "product": product}, asked.repetitions)
            ratio = timed.ratio("product", "gradient", 1 / vectors)[0]
            rows.append([width, vectors, timed.middle("gradient")[0] * 1e3, ratio])
    columns = ("width", "vectors", "gradient ms", "a product over a gradient")
    return Table("Hessian products of fc-tanh", columns, rows)


def speed(asked: Asked, kind: str) -> Table:
    """TFLOP/s of square products and of training steps at each precision."""
    limits = next((found for name, found in LIMITS.items() if name in kind), None)
    steps, side = 10, asked.size(8192, 64)
    data, rows = fc.images(asked.size(fc.EXAMPLES, 50)), []
    a = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), jnp.float32)
    for precision in PRECISIONS:
        limit = limits and limits[0 if precision == "highest" else 1]
        with numerics(precision):
            multiply = jax.jit(jnp.matmul)
            calls = {f"matmul {side}³": lambda multiply=multiply: multiply(a, a)}
            counts = {f"matmul {side}³": 2 * side**3}
            for width in asked.size((200, 4096), (8,)):
                name = f"training step, fc-tanh, width {width}"
                words = (f"model.width={width}", f"precision.matmul={precision}")
                calls[name] = fc.engine(data, steps, *words).chunk
                sizes = (fc.INPUTS, width, width, fc.OUTPUTS)
                counts[name] = steps * fc.flops(len(data.train.y), sizes)
            timed = turns(calls, asked.repetitions)
        for name, count in counts.items():
            rate = count / timed.middle(name)[0] / 1e12
            rows.append([precision, name, rate, limit, limit and rate / limit])
    columns = ("matmul precision", "what", "TFLOP/s", "data sheet's", "share")
    return Table("operations a second", columns, rows, f"{kind}; high is TF32 there.")


def sharpness(asked: Asked) -> Table:
    """λ₁ at the first weights from Lanczos at each precision, beside float64's."""
    fc.instead(fc.images(asked.size(fc.EXAMPLES, 50)))
    with numerics():
        words = [*fc.OVERRIDES, "steps=1", f"model.width={asked.size(fc.WIDTH, 8)}"]
        built = building.build([config.resolve(config.compose(words))])
        inputs = jax.device_put(jax.tree.map(lambda leaf: leaf[0], built.inputs))
        state = member.initial_state(built.program, inputs, jax.device_put(built.data))

    def largest(params: Any, examples: Any) -> jax.Array:
        flat, _ = ravel_pytree(params)
        operator = curvature.hessian(total_loss(state.problem), params, examples)
        draw = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
        return jnp.linalg.eigvalsh(krylov.lanczos(operator, draw, 60).matrix)[-1]

    found = {}
    for precision in (*PRECISIONS, "float64"):
        with numerics("highest" if precision == "float64" else precision):
            params, examples = state.params, state.data.train
            if precision == "float64":
                params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
                examples = examples._replace(x=examples.x.astype(jnp.float64))
            found[precision] = float(jax.jit(largest)(params, examples))
    rows = [[name, value, abs(value / found["float64"] - 1)] for name, value in found.items()]
    return Table(
        "sharpness at each matmul precision",
        ("matmul precision", "λ₁", "relative error"),
        rows,
        "60 Lanczos steps at the first weights of fc-tanh.",
    )
