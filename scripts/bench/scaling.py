"""What a step costs as the problem grows, one axis at a time; a log–log figure beside the table.

Parameters: fc-tanh 3072-n-n-10 on 1,000 random images, n from 25 to 1,600. Examples: fc-tanh with
n = 200 on 100 to 25,600 images, full batch. Members: 1 to 64 runs of digits (tanh, width 64) in one
program, in turn (``map``) and side by side (``vmap``). Observables: digits, 1 to 8 of them, each
measured every 10 steps, in the order of the table. Times are those of the engine's loop with what
it records, without start and compilation; a slope is of the last octaves, by least squares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from lmech import building, config, engine
from lmech.building import Setup
from lmech.lanes import Record
from lmech.numerics.precision import numerics
from scripts.bench import fc
from scripts.bench.asked import Asked
from scripts.bench.tables import Cell, Table
from scripts.bench.timing import clocks, ratio_of, same_threads

CHUNKS = 3
"""The first one is not timed."""
OBSERVABLES = ("loss", "accuracy", "weights", "dead_units", "effective_rank", "trace")
OBSERVABLES = (*OBSERVABLES, "sharpness", "spectral_density")
DIGITS = ("dataset=digits", "model=mlp", "model.width=64", "model.activation=tanh")
Points = list[tuple[float, np.ndarray]]
"""Size, and milliseconds of wall time a step [repetitions]."""


def setup(words: Sequence[str], chunk: int, members: int = 1) -> Setup:
    """So many seeds as lmech composes them, their data on the device."""
    sizes = (f"steps={chunk * CHUNKS}", f"execution.chunk={chunk}")
    jobs = [config.resolve(config.compose([*words, *sizes, f"seed={s}"])) for s in range(members)]
    built = building.build(jobs)
    return built._replace(data=jax.device_put(built.data))


def a_step(built: Setup, chunk: int) -> np.ndarray:
    """Wall and CPU seconds of a step of all members, from the end of the first chunk on."""
    arrivals = [
        np.asarray(clocks())
        for event in engine.train(*built)
        if isinstance(event, Record) and "train_loss" in event.columns
    ]
    # The row at the horizon, which no step follows, may come in a record of its own.
    return (arrivals[CHUNKS - 1] - arrivals[0]) / (chunk * (CHUNKS - 1))


def repeated(built: Setup, chunk: int, asked: Asked) -> np.ndarray:
    """Milliseconds of wall time, after one run to compile."""
    a_step(built, chunk)
    return np.asarray([a_step(built, chunk)[0] for _ in range(asked.repetitions)]) * 1e3


def measure(asked: Asked) -> Iterator[Table]:
    """The axes, and their figure."""
    same_threads(asked.threads)
    found: dict[str, dict[str, Points]] = {}
    with numerics():
        for axis, sizes in AXES.items():
            found[axis] = sizes(asked)
            yield table(axis, found[axis])
    asked.out.mkdir(parents=True, exist_ok=True)
    figure(found, asked)


def parameters(asked: Asked) -> dict[str, Points]:
    """Widths."""
    fc.instead(fc.images(asked.size(1000, 20)))
    points: Points = []
    for width in asked.size((25, 50, 100, 200, 400, 800, 1600), (2, 4)):
        built = setup([*fc.OVERRIDES, "observables=[loss]", f"model.width={width}"], 10)
        count = fc.INPUTS * width + width**2 + fc.OUTPUTS * width + 2 * width + fc.OUTPUTS
        points.append((count, repeated(built, 10, asked)))
    return {"fc-tanh, 1,000 images": points}


def examples(asked: Asked) -> dict[str, Points]:
    """Images, full batch."""
    points: Points = []
    for count in asked.size((100, 400, 1600, 6400, 25600), (20, 40)):
        fc.instead(fc.images(count))
        words = [*fc.OVERRIDES, "observables=[loss]", f"dataset.train_size={count}"]
        built = setup(words, 10)
        points.append((count, repeated(built, 10, asked)))
    return {"fc-tanh, width 200": points}


def members(asked: Asked) -> dict[str, Points]:
    """Runs of one program."""
    fc.instead(None)
    lines: dict[str, Points] = {"map": [], "vmap": []}
    for count in asked.size((1, 2, 4, 8, 16, 32, 64), (1, 2)):
        built = setup([*DIGITS, "observables=[loss]"], 20, count)
        for mode, points in lines.items():
            way = built._replace(program=replace(built.program, mode=mode))
            points.append((count, repeated(way, 20, asked)))
    return lines


def observables(asked: Asked) -> dict[str, Points]:
    """More and more of them, every 10 steps."""
    fc.instead(None)
    points: Points = []
    for count in range(1, 1 + asked.size(len(OBSERVABLES), 2)):
        chosen = OBSERVABLES[:count]
        words = [*DIGITS, f"observables=[{','.join(chosen)}]"]
        job = config.resolve(config.compose(words))
        words += [f"observables.{name}.every=10" for name in job["observables"]]
        words[-1:] = [words[-1], "observables.train_loss.every=1"]
        points.append((count, repeated(setup(words, 50), 50, asked)))
    return {"digits": points}


AXES = {
    "parameters": parameters,
    "examples": examples,
    "members": members,
    "observables": observables,
}


def slope(points: Points) -> float:
    """Of log time against log size, over the upper half of the sizes."""
    upper = points[len(points) // 2 - 1 :] if len(points) > 2 else points
    sizes, times = zip(*((size, np.median(ms)) for size, ms in upper), strict=True)
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def table(axis: str, lines: dict[str, Points]) -> Table:
    """An axis."""
    rows: list[list[Cell]] = []
    for name, points in lines.items():
        rows += [[name, size, ratio_of(ms), ratio_of(ms / size)] for size, ms in points]
    slopes = "; ".join(f"{name}: {slope(points):.2f}" for name, points in lines.items())
    columns = ("line", axis, "ms a step", f"over the {axis}")
    note = f"Slopes, log–log: {slopes}."
    if axis == "observables":
        note += f" In this order: {', '.join(OBSERVABLES)}."
    return Table(f"cost against {axis}", columns, rows, note)


def figure(found: dict[str, dict[str, Points]], asked: Asked) -> None:
    """One panel an axis, into ``scaling.png``."""
    import matplotlib as mpl  # noqa: PLC0415 - only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    drawn, axes = plt.subplots(2, 2, figsize=(8, 6), layout="constrained")
    for ax, (axis, lines) in zip(axes.flat, found.items(), strict=True):
        for name, points in lines.items():
            sizes = np.asarray([size for size, _ in points])
            middle, low, high = (
                np.asarray([kind(ms) for _, ms in points]) for kind in (np.median, np.min, np.max)
            )
            label = f"{name}: slope {slope(points):.2f}"
            (line,) = ax.loglog(sizes, middle, "o-", label=label)
            ax.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2)
            ax.loglog(sizes, middle[-1] * sizes / sizes[-1], ":", color="grey", linewidth=1)
        ax.set(xlabel=axis, ylabel="ms a step")
        ax.legend(title="dotted: proportional", fontsize="small")
    drawn.savefig(asked.out / "scaling.png", dpi=120)
    plt.close(drawn)
