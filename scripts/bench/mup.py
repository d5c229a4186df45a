"""lmech beside microsoft/mup's own way to train a learning-rate sweep.

The same sub-grid of ``lr_transfer``'s scale ``mup`` on both sides: the MLP of mup's examples on
CIFAR-10, μP, widths 256 and 512, four neighbours of the best learning rate (8 runs), CPU, float32.
What the peer does is in ``mup_loop.py``.

First, that both sides train the same thing: from lmech's weights and on lmech's batches the peer's
losses are lmech's, to rounding. Then the time of a step, without start, compilation or results, in
turns: lmech (members in turn, ``map``, and side by side, ``vmap``) and the peer from a tensor.
Then whole processes from command to result: start, reading the data, compilation, training and
writing losses; lmech also writes its report and figure. Here the peer also has a DataLoader. Each
round is a seed, drawn by each side for itself; the losses stand beside the times. In the first
round lmech's cache of compiled programs is empty. Beside the wall time stands the CPU time of all
threads, which a busy machine changes less; there PyTorch's threads wait for each other: use
``--threads 1``.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

import lmech
from lmech import building, config, engine, programs, reproducing
from lmech.building import Setup
from lmech.datasets import cifar10, files
from lmech.lanes import Record
from lmech.numerics.precision import numerics
from scripts.bench.asked import Asked, Missing, need
from scripts.bench.tables import Cell, Table, Target
from scripts.bench.timing import Turns, clocks, process, ratio_of, same_threads

WIDTHS = (256, 512)
GRID = np.geomspace(2**-8, 1, 20)
RATES = tuple(float(rate) for rate in GRID[4:8])  # 2^-6.32 … 2^-5.05; published best 2^-5.47
PARAMETRIZATION = ("parametrization=mup", "parametrization.base_width=256")
CHUNK = 50
CHUNKS = 3
"""Of the runs that are timed by the step; the first one is not."""
TOLD = Path("$LMECH_DATA", cifar10.SOURCE.folder)
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
        if isinstance(event, Record) and trained(event):
            arrivals.append(np.asarray(clocks()))
            losses.append(event.columns["batch_loss"])
    steps = sum(part.size for part in losses[1:])
    return Timed((arrivals[-1] - arrivals[0]) / steps, np.concatenate(losses, axis=1))


def trained(record: Record) -> bool:
    """Whether it is of a chunk of steps; the last row, at the horizon, may have one of its own."""
    return int(record.valid.sum(axis=1).max()) > 1


def theirs(peer: ModuleType, width: int, epochs: Any) -> Timed:
    """One run after another, each from the end of its first step on."""
    steps = CHUNK * CHUNKS
    runs = [peer.train(peer.drawn(width), rate, peer.take(epochs, steps)) for rate in RATES]
    seconds = np.sum([(run.wall, run.cpu) for run in runs], axis=0) / (steps - 1) / len(RATES)
    return Timed(seconds, np.asarray([run.losses for run in runs]))


def same(peer: ModuleType, batch: Setup, width: int, known: np.ndarray) -> float:
    """The peer from lmech's weights on lmech's batches; largest relative difference of a loss."""
    torch = need("torch", "torch")
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


def by_the_step(peer: ModuleType, folder: Path, asked: Asked) -> Table:
    """The check that both sides are the same, and their times in turns."""
    epochs = peer.from_tensor(*peer.read(folder))
    rows: list[list[Cell]] = []
    notes, targets = [], []
    for width in asked.size(WIDTHS, WIDTHS[:1]):
        built = batch(width)
        modes = {
            mode: built._replace(program=replace(built.program, mode=mode))
            for mode in ("map", "vmap")
        }
        first = ours(modes["map"])  # compiles
        ours(modes["vmap"])
        worst = same(peer, built, width, first.losses)
        if not worst < ROUNDING:
            raise AssertionError(f"losses differ by {worst:.0e}: this is not the same training")
        notes.append(f"width {width}: {worst:.0e}")
        rounds: dict[str, list[np.ndarray]] = {side: [] for side in ("mup", *modes)}
        for _ in range(asked.repetitions):
            for mode, way in modes.items():
                rounds[mode].append(ours(way).seconds)
            rounds["mup"].append(theirs(peer, width, epochs).seconds)
        turns = Turns({side: np.asarray(seconds) for side, seconds in rounds.items()})
        for side in rounds:
            wall, cpu = (seconds * 1e3 for seconds in turns.middle(side))
            rows.append([width, side, wall, cpu, *turns.ratio("mup", side)])
        faster = max(modes, key=lambda mode: turns.ratio("mup", mode)[0].median)
        ratio = turns.ratio("mup", faster)[0]
        targets.append(
            Target(f"mup's step over lmech's ({faster}), width {width}", ratio, "≥", 1.0)
        )
    return Table(
        "a step and run, without start, compilation and results",
        ("width", "side", "wall ms", "CPU ms", "mup's wall over it", "mup's CPU over it"),
        rows,
        f"From the same weights on the same batches the losses of the first {FIRST} steps differ "
        f"relatively by at most: {'; '.join(notes)}.",
        tuple(targets),
    )


def lmech_process(
    room: Path, cache: Path, steps: int, seed: int
) -> tuple[tuple[float, float], Loss, float]:
    """Seconds, losses, and of the seconds those of batches."""
    sizes = (f"model.width={_list(WIDTHS)}", f"optimizer.learning_rate={_list(RATES)}")
    words = ("-m", *overrides(), *sizes, f"steps={steps}", f"seed={seed}")
    seconds = process([sys.executable, "-m", "lmech", *words], room, LMECH_CACHE=str(cache))
    (sweep,) = (room / "outputs/lr_transfer").iterdir()
    frame = lmech.collect(sweep)
    late = frame[frame["step"] >= steps // 2]
    means = late.groupby(["model.width", "optimizer.learning_rate"])["batch_loss"].mean()
    told = json.loads((sweep / "summary.json").read_text(encoding="utf-8"))["seconds"]
    return seconds, {key: float(value) for key, value in means.items()}, told["run"]


def _list(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


def peer_command(out: Path, folder: Path, way: str, steps: int, seed: int) -> list[str]:
    """The peer's process."""
    sizes = ["--widths", *map(str, WIDTHS), "--rates", *map(str, RATES), "--steps", str(steps)]
    command = [sys.executable, "-m", "scripts.bench.mup_loop", way, str(folder)]
    return [*command, "--out", str(out), *sizes, "--seed", str(seed)]


def peer_process(
    room: Path, folder: Path, way: str, steps: int, seed: int
) -> tuple[tuple[float, float], Loss, float]:
    """Seconds, losses, and of the seconds those of steps."""
    out = room / f"{way}{seed}.json"
    seconds = process(peer_command(out, folder, way, steps, seed), room)
    runs = json.loads(out.read_text(encoding="utf-8"))
    losses = {(r["width"], r["rate"]): float(np.mean(r["losses"][steps // 2 :])) for r in runs}
    return seconds, losses, sum(r["wall"] for r in runs)


def whole(room: Path, folder: Path, asked: Asked) -> Iterator[Table]:
    """Both sides from command to result, in turns, and their losses."""
    steps = asked.size(300, 4)
    turns: list[dict[str, tuple[tuple[float, float], Loss, float]]] = []
    for seed in range(1 + asked.repetitions):
        turns.append(
            {
                "lmech": lmech_process(room / str(seed), room / "cache", steps, seed),
                "mup, tensor": peer_process(room, folder, "tensor", steps, seed),
                "mup, DataLoader": peer_process(room, folder, "loader", steps, seed),
            }
        )
    rows: list[list[Cell]] = []
    for cache, chosen in {"empty": turns[:1], "filled": turns[1:]}.items():
        for side in chosen[0]:
            wall, cpu = np.median([turn[side][0] for turn in chosen], axis=0).tolist()
            steps_alone = statistics.median(turn[side][2] for turn in chosen)
            ratios = [
                ratio_of([turn[side][0][c] / turn["lmech"][0][c] for turn in chosen])
                for c in (0, 1)
            ]
            rows.append([cache, side, wall, cpu, steps_alone, *ratios])
    columns = ("cache of programs", "side", "wall s", "CPU s", "of it steps, wall s")
    yield Table(
        f"from command to result: {len(WIDTHS) * len(RATES)} runs of {steps} steps",
        (*columns, "wall over lmech's", "CPU over lmech's"),
        rows,
        commands=tuple(
            " ".join(["python", *peer_command(Path(f"{way}.json"), TOLD, way, steps, 0)[1:]])
            for way in ("tensor", "loader")
        ),
    )
    if asked.repetitions > 1:
        yield agreement([{side: turn[side][1] for side in turn} for turn in turns], "mup, tensor")


def agreement(losses: list[dict[str, Loss]], way: str) -> Table:
    """Each run's loss on both sides: means over the seeds, and one seed's spread."""
    rows: list[list[Cell]] = []
    for width in WIDTHS:
        for rate in RATES:
            mine, other = ([seed[side][width, rate] for seed in losses] for side in ("lmech", way))
            means = statistics.mean(mine), statistics.mean(other)
            spread = max(statistics.stdev(side) / statistics.mean(side) for side in (mine, other))
            rows.append([width, float(np.log2(rate)), *means, means[0] / means[1], spread])
    return Table(
        f"mean batch loss of the second half, over {len(losses)} seeds",
        ("width", "log₂ η", "lmech", "mup", "ratio", "one seed's spread"),
        rows,
    )


def measure(asked: Asked) -> Iterator[Table]:
    """By the step, then whole processes."""
    need("torch", "torch")
    need("mup", "mup")
    peer = need("scripts.bench.mup_loop", "mup torch")
    try:
        folder = files.locate(cifar10.SOURCE)[0].parent
    except files.DataNotFound as error:
        raise Missing(f"CIFAR-10: {error}") from error
    same_threads(asked.threads)
    with numerics():
        yield by_the_step(peer, folder, asked)
    with tempfile.TemporaryDirectory() as room:
        yield from whole(Path(room), folder, asked)
