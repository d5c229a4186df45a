"""lmech beside microsoft/mup's own way to train a learning-rate sweep, as ratios within one run.

    pip install mup torch
    python scripts/bench_mup.py                    # all cores
    python scripts/bench_mup.py --threads 1

The same sub-grid of ``lr_transfer``'s scale ``mup`` on both sides: the MLP of mup's examples on
CIFAR-10, μP, widths 256 and 512, four neighbours of the best learning rate, CPU, float32. What the
peer does is in ``mup_loop.py``; it is skipped where mup or PyTorch is not installed.

First, that both sides train the same thing: from lmech's weights and on lmech's batches the peer's
losses are lmech's, to rounding. Then the time of a step, without start, compilation or results, in
turns: lmech (members in turn, ``map``, and side by side, ``vmap``) and the peer from a tensor.
Then whole processes from command to result: start, reading the data, compilation, training and
writing losses; lmech also writes its report and figure. Here the peer also has a DataLoader. Each
round is a seed, drawn by each side for itself; the losses stand beside the times. In the first
round lmech's cache of compiled programs is empty. Ratios are the peer's time over lmech's: medians
over the rounds, with the range. Beside the wall time stands the CPU time of all threads, which a
busy machine changes less; there PyTorch's threads wait for each other: use ``--threads 1``.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from beside import clocks, installed, middle, same_threads

import lmech
from lmech import building, config, engine, programs, reproducing
from lmech.building import Setup
from lmech.datasets import cifar10, files
from lmech.lanes import Record
from lmech.numerics.precision import numerics

WIDTHS = (256, 512)
GRID = np.geomspace(2**-8, 1, 20)
RATES = tuple(float(rate) for rate in GRID[4:8])  # 2^-6.32 … 2^-5.05; published best 2^-5.47
PARAMETRIZATION = ("parametrization=mup", "parametrization.base_width=256")
CHUNK = 50
CHUNKS = 3
"""Of the runs that are timed by the step; the first one is not."""
ROUNDING = 1e-3
"""Largest relative difference of a loss in the first steps that is put down to float32."""
FIRST = 20
"""Steps until which rounding has not grown to more."""


Loss = dict[tuple[int, float], float]
"""Width, learning rate → mean of the batches' losses over the second half of a run."""


class Timed(NamedTuple):
    """A side's runs of one program: seconds a step and run, and losses [runs, steps]."""

    seconds: np.ndarray
    """Wall, CPU."""
    losses: np.ndarray


def overrides() -> list[str]:
    """What the experiment's scale says, and μP."""
    scale = reproducing.load("lr_transfer", "mup", []).overrides
    return [*scale, *PARAMETRIZATION, "logger=none"]


def batch(width: int) -> Setup:
    """The four runs of a width as lmech composes them, their data on the device."""
    sizes = (f"model.width={width}", f"steps={CHUNK * CHUNKS}", f"execution.chunk={CHUNK}")
    words = [*overrides(), *sizes]
    runs = [[*words, f"optimizer.learning_rate={rate}"] for rate in RATES]
    built = building.build([config.resolve(config.compose(run)) for run in runs])
    return built._replace(data=jax.device_put(built.data))


def ours(batch: Setup) -> Timed:
    """From the end of the first chunk on; seconds are those of a step and member."""
    arrivals, losses = [], []
    for event in engine.train(*batch):
        if isinstance(event, Record):
            arrivals.append(np.asarray(clocks()))
            losses.append(event.columns["batch_loss"])
    steps = sum(part.size for part in losses[1:])
    return Timed((arrivals[-1] - arrivals[0]) / steps, np.concatenate(losses, axis=1))


def theirs(peer: ModuleType, width: int, epochs: Any) -> Timed:
    """One run after another, each from the end of its first step on."""
    steps = CHUNK * CHUNKS
    runs = [peer.train(peer.drawn(width), rate, peer.take(epochs, steps)) for rate in RATES]
    seconds = np.sum([(run.wall, run.cpu) for run in runs], axis=0) / (steps - 1) / len(RATES)
    return Timed(seconds, np.asarray([run.losses for run in runs]))


def same(peer: ModuleType, batch: Setup, width: int, known: np.ndarray) -> float:
    """The peer from lmech's weights on lmech's batches; largest relative difference of a loss."""
    torch = importlib.import_module("torch")
    weights = programs.initial_weights(batch.program, batch.inputs)
    x, y = (np.asarray(part) for part in (batch.data.train.x, batch.data.train.y))
    indices = batch.batches(np.arange(FIRST))
    layers = {"first": "hidden_1", "second": "hidden_2"}
    worst = 0.0
    for member, rate in enumerate(RATES):
        net = peer.drawn(width)
        with torch.no_grad():
            for layer, name in layers.items():
                kernel = weights[name]["kernel"][member]
                getattr(net, layer).weight.copy_(torch.from_numpy(kernel.T.copy()))
        examples = [
            (torch.from_numpy(x[rows]), torch.from_numpy(y[rows]).long())
            for rows in indices[member]
        ]
        found = np.asarray(peer.train(net, rate, examples).losses)
        worst = max(worst, float(np.max(np.abs(found / known[member, :FIRST] - 1))))
    return worst


def by_the_step(peer: ModuleType, folder: Path, rounds: int) -> None:
    """Print the check that both sides are the same, and their times in turns."""
    epochs = peer.from_tensor(*peer.read(folder))
    for width in WIDTHS:
        built = batch(width)
        modes = {
            mode: built._replace(program=replace(built.program, mode=mode))
            for mode in ("map", "vmap")
        }
        first = ours(modes["map"])  # compiles
        ours(modes["vmap"])
        worst = same(peer, built, width, first.losses)
        print(f"width {width}: losses of the first {FIRST} steps differ by at most {worst:.0e}")
        if not worst < ROUNDING:
            raise AssertionError("the two sides do not train the same thing")
        turns = []
        for _ in range(rounds):
            mine = {mode: ours(way).seconds for mode, way in modes.items()}
            turns.append({**mine, "mup": theirs(peer, width, epochs).seconds})
        for side in ("mup", *modes):
            wall, cpu = np.median([turn[side] for turn in turns], axis=0) * 1e3
            ratios = middle(np.asarray([turn["mup"] / turn[side] for turn in turns]))
            print(f"  {side:5s} {wall:7.2f} ms a step, CPU {cpu:.2f}; mup's over it: {ratios}")


def lmech_process(room: Path, cache: Path, steps: int, seed: int) -> tuple[np.ndarray, Loss, str]:
    """Seconds, losses and what the summary says of them."""
    room.mkdir()
    paths = os.pathsep.join([str(Path.cwd()), *sys.path])
    environment = {**os.environ, "LMECH_CACHE": str(cache), "PYTHONPATH": paths}
    sizes = (f"model.width={_list(WIDTHS)}", f"optimizer.learning_rate={_list(RATES)}")
    words = ("-m", *overrides(), *sizes, f"steps={steps}", f"seed={seed}")
    seconds = process([sys.executable, "-m", "lmech", *words], room, environment)
    (sweep,) = (room / "outputs/lr_transfer").iterdir()
    frame = lmech.collect(sweep)
    late = frame[frame["step"] >= steps // 2]
    means = late.groupby(["model.width", "optimizer.learning_rate"])["batch_loss"].mean()
    told = json.loads((sweep / "summary.json").read_text(encoding="utf-8"))["seconds"]
    parts = f"{told['compile']:.1f} s compiling, {told['run']:.1f} s batches"
    return seconds, {key: float(value) for key, value in means.items()}, parts


def _list(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


def process(command: list[str], room: Path, environment: dict[str, str]) -> np.ndarray:
    """Wall and CPU seconds of a command and its children. Raises if it fails."""

    def clocks() -> np.ndarray:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return np.asarray([time.perf_counter(), spent.ru_utime + spent.ru_stime])

    started, out = clocks(), subprocess.DEVNULL
    subprocess.run(command, cwd=room, env=environment, check=True, stdout=out)  # noqa: S603
    return clocks() - started


def peer_process(
    room: Path, folder: Path, way: str, steps: int, seed: int
) -> tuple[np.ndarray, Loss, str]:
    """Seconds, losses, and how much of the time is steps."""
    out = room / f"{way}{seed}.json"
    sizes = ["--widths", *map(str, WIDTHS), "--rates", *map(str, RATES), "--steps", str(steps)]
    script = str(Path(__file__).with_name("mup_loop.py"))
    command = [sys.executable, script, way, str(folder), "--out", str(out), *sizes]
    seconds = process([*command, "--seed", str(seed)], room, dict(os.environ))
    runs = json.loads(out.read_text(encoding="utf-8"))
    losses = {(r["width"], r["rate"]): float(np.mean(r["losses"][steps // 2 :])) for r in runs}
    return seconds, losses, f"{sum(r['wall'] for r in runs):.1f} s steps"


def whole(room: Path, folder: Path, steps: int, rounds: int) -> None:
    """Print both sides from command to result, in turns, and their losses."""
    print(f"from command to result, {len(WIDTHS) * len(RATES)} runs of {steps} steps")
    seconds, losses = [], []
    for seed in range(rounds + 1):
        sides = {
            "lmech": lmech_process(room / str(seed), room / "cache", steps, seed),
            "tensor": peer_process(room, folder, "tensor", steps, seed),
            "loader": peer_process(room, folder, "loader", steps, seed),
        }
        seconds.append({side: found[0] for side, found in sides.items()})
        losses.append({side: found[1] for side, found in sides.items()})
        told = "; ".join(
            f"{side} {wall:.1f} s, CPU {cpu:.1f} s ({parts})"
            for side, ((wall, cpu), _, parts) in sides.items()
        )
        print(f"  {'filled' if seed else 'empty'} cache: {told}", flush=True)
    for way in ("tensor", "loader"):
        ratios = np.asarray([turn[way] / turn["lmech"] for turn in seconds])
        print(
            f"  mup's over lmech's, {way}: {middle(ratios[1:])}; cache empty: {middle(ratios[:1])}"
        )
    agreement(losses, "tensor")


def agreement(losses: list[dict[str, Loss]], way: str) -> None:
    """Print each run's loss on both sides: means over the seeds, and one seed's spread."""
    print(f"mean batch loss of the second half, over {len(losses)} seeds: lmech, mup, ratio")
    for width in WIDTHS:
        for rate in RATES:
            mine, other = ([seed[side][width, rate] for seed in losses] for side in ("lmech", way))
            ratio = statistics.mean(mine) / statistics.mean(other)
            spread = max(statistics.stdev(side) / statistics.mean(side) for side in (mine, other))
            print(
                f"  width {width}, η = 2^{np.log2(rate):.2f}: {statistics.mean(mine):.4f} "
                f"{statistics.mean(other):.4f} {ratio:.3f} (seeds ± {spread:.3f})"
            )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="of the whole processes (300)")
    parser.add_argument("--rounds", type=int, default=3, help="at least 1 (3)")
    parser.add_argument("--threads", type=int, help="of both sides (all cores)")
    return parser.parse_args()


def main() -> None:
    """Print the tables, or that the peer is not there."""
    asked = arguments()
    try:
        peer = importlib.import_module("mup_loop")
    except ImportError as error:
        print(f"skipped: microsoft/mup ({error}): pip install mup torch")
        return
    try:
        folder = files.locate(cifar10.SOURCE)[0].parent
    except files.DataNotFound as error:
        print(f"skipped: microsoft/mup: CIFAR-10's {error}")
        return
    threads = same_threads(asked.threads)
    versions = installed(("lmech", "jax", "torch", "mup", "numpy"))
    print(f"{threads} threads; {', '.join(versions)}")
    with numerics():
        by_the_step(peer, folder, asked.rounds)
    with tempfile.TemporaryDirectory() as room:
        whole(Path(room), folder, asked.steps, asked.rounds)


if __name__ == "__main__":
    main()
