"""Addition modulo 113 by a one-layer transformer: lmech beside plain PyTorch, within one run.

    pip install torch
    python scripts/bench_grokking.py                    # all cores
    python scripts/bench_grokking.py --threads 1

The experiment ``grokking`` at its scale ``paper`` (Nanda et al. 2023): p = 113, 30 % of the pairs,
width 128, full batch, AdamW with decay 1, the logarithm of the loss in float64, CPU. Both sides
record the training loss and nothing else. The peers are in ``grokking_loop.py``: ``notebook``
computes all positions, as the authors do; ``last`` what the last position needs; ``tables`` does
as lmech's model does: a key and a value once for each position and token, not for each example.

First, that all train the same thing: from lmech's weights on lmech's pairs the losses of the first
steps are lmech's, to rounding. Then the time of a step, without start and compilation, in turns:
the peers one run, lmech one run and four seeds as one batch (members in turn, ``map``, and side by
side, ``vmap``), a step and member. Medians over the rounds, ratios with their range. Beside the
wall time stands the CPU time of all threads, which a busy machine changes less; there PyTorch's
threads wait for each other: use ``--threads 1``.
"""

import argparse
import importlib
import os
from dataclasses import replace
from types import ModuleType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from bench_mup import FIRST, ROUNDING, ours
from beside import installed, middle, same_threads

from lmech import building, config, programs, reproducing
from lmech.building import Setup
from lmech.numerics.precision import numerics

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
    torch = importlib.import_module("torch")
    rows = built.inputs.rows.own[0]
    parts = (np.asarray(part)[rows] for part in (built.data.train.x, built.data.train.y))
    return tuple(torch.from_numpy(part).long() for part in parts)


def net(peer: ModuleType, way: str, weights: dict[str, np.ndarray]) -> Any:
    """A peer at the first member's weights."""
    torch = importlib.import_module("torch")
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


def compare(peer: ModuleType, steps: int, rounds: int) -> None:
    """Print that all train the same thing, then their times in turns."""
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
    known = first.pop("lmech")
    worst = ", ".join(f"{name} {apart(losses, known):.0e}" for name, losses in first.items())
    print(f"losses of the first {FIRST} steps beside lmech's differ by at most: {worst}")
    turns = []
    for _ in range(rounds):
        runs = {way: theirs(way) for way in peer.WAYS}
        turn = {way: np.asarray([run.wall, run.cpu]) / (steps - 1) for way, run in runs.items()}
        turns.append(turn | {name: ours(built).seconds for name, built in batches.items()})
    print(f"{len(pairs[0])} pairs, {rounds} rounds of {steps} steps; a step and member:")
    for name in turns[0]:
        wall, cpu = np.median([turn[name] for turn in turns], axis=0) * 1e3
        ratios = middle(np.asarray([turn[name] / turn["lmech"] for turn in turns]))
        print(f"  {name:13s} {wall:6.1f} ms, CPU {cpu:6.1f}; over lmech's alone: {ratios}")
    print("notebook computes all positions, last the last one; tables, as lmech, computes keys and")
    print("values once for each position and token, not for each example")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30, help=f"of each run (30), at least {FIRST}")
    parser.add_argument("--rounds", type=int, default=5, help="at least 1 (5)")
    parser.add_argument("--threads", type=int, help="of both sides (all cores)")
    return parser.parse_args()


def main() -> None:
    """Print the check and the times, or that the peer is not there."""
    asked = arguments()
    try:
        peer = importlib.import_module("grokking_loop")
    except ImportError as error:
        print(f"skipped: PyTorch ({error}): pip install torch")
        return
    threads = same_threads(asked.threads)
    print(f"{threads} threads; {', '.join(installed(('lmech', 'jax', 'torch', 'numpy')))}")
    with numerics():
        compare(peer, asked.steps, asked.rounds)


if __name__ == "__main__":
    main()
