"""What a tangent kernel of CIFAR-10's size costs: seconds and peak memory, a process for each.

Random images of 3072 numbers, float32: fc-tanh 3072-200-200-10 and a convolutional net on
32 × 32 × 3 (three layers of 32 channels). Peak memory is the process's, with JAX itself in it;
*before* is what it was with the images and the net in place. Beside it neural-tangents' empirical
kernel of the same fc-tanh at the same weights and images, in an environment of its own where it
still imports (--peers): each of its implementations, compiled, ``vmap_axes=0``; the two kernels are
compared by their Frobenius norms and traces.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmech.models.cnn import cnn
from lmech.models.mlp import mlp
from lmech.numerics import kernels
from lmech.numerics.precision import numerics
from scripts.bench.asked import Asked
from scripts.bench.tables import Cell, Ratio, Table, Target
from scripts.bench.timing import environment, ratio_of, same_threads

MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "fc": (mlp(10, width=200, depth=2), (3072,)),
    "cnn": (cnn(10, width=32, depth=3), (32, 32, 3)),
}
CASES = (("fc", "sum_logits", 2000), ("cnn", "full", 500), ("fc", "full", 500))
BESIDE = 100
"""Images of the comparison: its largest implementation holds [10 n, P] and more."""
IMPLEMENTATIONS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")
ROUNDING = 1e-3
PEER = Path(__file__).with_name("ntk_peer.py")


def peak() -> float:
    """Largest resident set of this process so far, in GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def kernel(name: str, reduction: Any, n: int) -> dict[str, Any]:
    """One kernel, in this process: compiled and called once before it is timed."""
    model, shape = MODELS[name]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)

    def kernel(params: Any, x: jax.Array) -> jax.Array:
        return kernels.empirical_ntk(apply, params, x, reduction)

    with numerics():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(n, *shape)), jnp.float32)
        params = jax.jit(model.init)(jax.random.key(0), x[:1])["params"]
        if name == "fc":
            params = drawn(params)
        compiled = jax.jit(kernel).lower(params, x).compile()
        before = peak()
        jax.block_until_ready(compiled(params, x))
        wall, cpu = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(compiled(params, x))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        most = peak()
    found = np.asarray(found, np.float64)  # 5,000² entries: a sum in float32 is not that exact
    return {
        "rows": len(found),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "wall": wall,
        "cpu": cpu,
        "before": before,
        "peak": most,
        "norm": float(np.linalg.norm(found)),
        "trace": float(np.trace(found)),
    }


def drawn(params: Any) -> Any:
    """Weights that ``ntk_peer`` draws too: layer by layer, N(0, 1/fan_in), biases 0.1 N(0, 1)."""
    rng = np.random.default_rng(1)
    return {
        name: {
            "kernel": rng.normal(size=(m := params[name]["kernel"].shape)).astype(np.float32)
            / np.float32(m[0] ** 0.5),
            "bias": 0.1 * rng.normal(size=m[1]).astype(np.float32),
        }
        for name in sorted(params)
    }


def ours(name: str, reduction: str, n: int) -> dict[str, Any]:
    """One kernel, in a process of its own."""
    words = f"ntk.kernel({name!r}, {reduction!r}, {n})"
    script = f"from scripts.bench import ntk; print(ntk.json.dumps({words}))"
    return _json([sys.executable, "-c", script], environment())


def theirs(python: Path, way: str, n: int) -> dict[str, Any]:
    """The peer's, in its own environment, which must not see this one's packages."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return _json([str(python), str(PEER), way, str(n)], own)


def _json(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=env, capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return json.loads(done.stdout)


def measure(asked: Asked) -> Iterator[Table]:
    """Cases of CIFAR-10's size, then the peer."""
    same_threads(asked.threads)  # of the processes too
    rows: list[list[Cell]] = []
    for name, reduction, n in asked.size(CASES, (("fc", "full", 10),)):
        turns = [ours(name, reduction, n) for _ in range(asked.repetitions)]
        wall, cpu = (ratio_of([turn[clock] for turn in turns]) for clock in ("wall", "cpu"))
        sizes = [turns[0][key] for key in ("rows", "parameters", "before")]
        rows.append([name, reduction, n, *sizes[:2], wall, cpu, sizes[2], turns[0]["peak"]])
    columns = ("net", "reduction", "images", "rows", "parameters", "wall s", "CPU s")
    yield Table("kernels", (*columns, "before GiB", "peak GiB"), rows)
    yield beside(asked)


def beside(asked: Asked) -> Table:
    """All outputs of fc-tanh, lmech's and neural-tangents'."""
    title, python = "fc-tanh, all outputs", asked.peers / "neural-tangents/bin/python"
    if not python.exists():
        return Table(title, (), (), f"skipped: no {python}: see --help for its environment")
    n = asked.size(BESIDE, 5)
    turns: list[dict[str, dict[str, Any]]] = []
    for _ in range(asked.repetitions):
        turn = {"lmech": ours("fc", "full", n)}
        for way in IMPLEMENTATIONS:
            turn[way] = theirs(python, way, n)
        turns.append(turn)
    rows: list[list[Cell]] = []
    ratios: dict[str, Ratio] = {}
    for way in turns[0]:
        found = [turn[way] for turn in turns]
        wall, cpu = (
            ratio_of([run[c] / turn["lmech"][c] for run, turn in zip(found, turns, strict=True)])
            for c in ("wall", "cpu")
        )
        apart = max(abs(found[0][key] / turns[0]["lmech"][key] - 1) for key in ("norm", "trace"))
        if not apart < ROUNDING:
            raise AssertionError(f"{way}: another kernel, by {apart:.0e}")
        seconds = [float(np.median([run[c] for run in found])) for c in ("wall", "cpu")]
        rows.append([way, *seconds, found[0]["peak"], apart, wall, cpu])
        ratios[way] = wall
    best = min(IMPLEMENTATIONS, key=lambda way: ratios[way].median)
    told = turns[0][best]["versions"]
    columns = ("way", "wall s", "CPU s", "peak GiB", "kernels differ by", "wall over lmech's")
    return Table(
        title,
        (*columns, "CPU over lmech's"),
        rows,
        f"{n} images, kernels [{10 * n} × {10 * n}], processes in turns, compilation not counted; "
        f"{told}.",
        (Target(f"neural-tangents' fastest ({best}) over lmech's", ratios[best], "≥", 1.0),),
        tuple(f"neural-tangents/bin/python {PEER.name} {way} {n}" for way in IMPLEMENTATIONS),
    )
