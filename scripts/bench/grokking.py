"""Addition modulo 113 by a one-layer transformer: lmech beside plain PyTorch.

The experiment ``grokking`` at its scale ``paper`` (Nanda et al. 2023): p = 113, 30 % of the pairs,
width 128, full batch, AdamW with decay 1, the logarithm of the loss in float64, CPU. Both sides
record the training loss and nothing else. The peers are in ``grokking_loop.py``: ``notebook``
computes all positions, as the authors do; ``last`` what the last position needs; ``tables`` does
as lmech's model does: a key and a value once for each position and token, not for each example.

First, that all train the same thing: from lmech's weights on lmech's pairs the losses of the first
steps are lmech's, to rounding. Then the time of a step, without start and compilation, in turns:
the peers one run, lmech one run and four seeds as one batch (members in turn, ``map``, and side by
side, ``vmap``), a step and member. Beside the wall time stands the CPU time of all threads, which a
busy machine changes less; there PyTorch's threads wait for each other: use ``--threads 1``.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import jax
import numpy as np

from lmech import building, config, programs, reproducing
from lmech.building import Setup
from lmech.numerics.precision import numerics
from scripts.bench.asked import Asked, need
from scripts.bench.mup import FIRST, ROUNDING, ours
from scripts.bench.tables import Table, Target
from scripts.bench.timing import Turns, same_threads

FRACTION = 0.3
SEEDS = 4
CHUNKS = 3
"""The first one is not timed."""


def batch(seeds: int, steps: int, mode: str) -> Setup:
    """So many seeds as lmech composes them, without observables; their data on the device."""
    scale = reproducing.load("grokking", "paper", []).overrides
    sizes = (
        f"data_fraction={FRACTION}",
        f"steps={steps}",
        f"execution.chunk={-(-steps // CHUNKS)}",
    )
    jobs = [config.resolve(config.compose([*scale, *sizes, f"seed={s}"])) for s in range(seeds)]
    built = building.build([{**job, "observables": {}} for job in jobs])
    program = replace(built.program, mode=mode)
    return built._replace(program=program, data=jax.device_put(built.data))


def examples(built: Setup) -> tuple[Any, Any]:
    """The first member's training pairs and sums, as PyTorch takes them."""
    torch = need("torch", "torch")
    rows = built.inputs.rows.own[0]
    parts = (np.asarray(part)[rows] for part in (built.data.train.x, built.data.train.y))
    return tuple(torch.from_numpy(part).long() for part in parts)


def net(peer: ModuleType, way: str, weights: dict[str, np.ndarray]) -> Any:
    """A peer at the first member's weights."""
    torch = need("torch", "torch")
    _, width, heads, _ = weights["key"].shape
    made = peer.WAYS[way](weights["readout"].shape[-1], width, heads, weights["mlp_in"].shape[-1])
    own = {name: torch.from_numpy(tensor[0].copy()) for name, tensor in weights.items()}
    made.load_state_dict(own)
    return made


def apart(losses: Any, known: np.ndarray) -> float:
    """Largest relative difference of a loss in the first steps. Raises AssertionError."""
    worst = float(np.max(np.abs(np.asarray(losses)[:FIRST] / known[:FIRST] - 1)))
    if not worst < ROUNDING:
        raise AssertionError(f"losses differ by {worst:.0e}: this is not the same training")
    return worst


def measure(asked: Asked) -> Iterator[Table]:
    """That all train the same thing, then their times in turns."""
    need("torch", "torch")
    peer = need("scripts.bench.grokking_loop", "torch")
    same_threads(asked.threads)
    with numerics():
        yield compare(peer, asked.size(30, FIRST), asked.repetitions)


def compare(peer: ModuleType, steps: int, repetitions: int) -> Table:
    """The check and the times."""
    alone = batch(1, steps, "map")
    batches = {
        "lmech": alone,
        **{f"{SEEDS} seeds, {mode}": batch(SEEDS, steps, mode) for mode in ("map", "vmap")},
    }
    weights, pairs = programs.initial_weights(alone.program, alone.inputs), examples(alone)

    def theirs(way: str) -> Any:
        return peer.train(net(peer, way, weights), *pairs, steps)

    first = {name: ours(built).losses[0] for name, built in batches.items()}  # compiles
    first |= {way: theirs(way).losses for way in peer.WAYS}
    known = first["lmech"]
    worst = ", ".join(f"{name} {apart(losses, known):.0e}" for name, losses in first.items())
    rounds: dict[str, list[np.ndarray]] = {name: [] for name in (*peer.WAYS, *batches)}
    for _ in range(repetitions):
        for way in peer.WAYS:
            run = theirs(way)
            rounds[way].append(np.asarray([run.wall, run.cpu]) / (steps - 1))
        for name, built in batches.items():
            rounds[name].append(ours(built).seconds)
    turns = Turns({name: np.asarray(seconds) for name, seconds in rounds.items()})
    rows = []
    for name in rounds:
        wall, cpu = (seconds * 1e3 for seconds in turns.middle(name))
        rows.append([name, wall, cpu, 1e3 / wall, *turns.ratio(name, "lmech")])
    columns = ("side", "wall ms", "CPU ms", "steps/s", "wall over lmech's alone")
    return Table(
        f"a step and member; {len(pairs[0])} pairs, {steps} steps a repetition",
        (*columns, "CPU over lmech's alone"),
        rows,
        f"Losses of the first {FIRST} steps beside lmech's differ relatively by at most: {worst}. "
        "notebook computes all positions, last the last one; tables, as lmech, computes keys and "
        "values once for each position and token, not for each example.",
        tuple(
            Target(f"PyTorch's step ({way}) over lmech's", found, "≥", 1.0)
            for way in peer.WAYS
            for found in [turns.ratio(way, "lmech")[0]]
        ),
    )
