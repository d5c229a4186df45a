"""What a step costs as the problem grows, one axis at a time; a figure of the tables beside them.

Parameters: fc-tanh 3072-n-n-10 on 1,000 random images, n from 25 to 1,600. Examples: fc-tanh with
n = 200 on 100 to 25,600 images, full batch. Members: 1 to 64 runs of digits (tanh, width 64) in one
program, in turn (``map``) and side by side (``vmap``). Observables: digits, one more at a time,
each measured every 10 steps. Times are those of the engine's loop with what it records, without
start and compilation; a slope is of the larger sizes, by least squares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmech import building, config, engine
from lmech.building import Setup
from lmech.lanes import Record
from lmech.numerics.precision import numerics
from scripts.bench import fc
from scripts.bench.asked import Asked
from scripts.bench.tables import Cell, Ratio, Table
from scripts.bench.timing import clocks, ratio_of, same_threads

CHUNKS = 3
"""The first one is not timed."""
OBSERVABLES = ("loss", "accuracy", "weights", "dead_units", "effective_rank", "trace")
OBSERVABLES = (*OBSERVABLES, "sharpness", "spectral_density")
DIGITS = ("dataset=digits", "model=mlp", "model.width=64", "model.activation=tanh")
EVERY = 10
"""Steps between two measurements of an observable."""
FIGURE = "figures/scaling.png"
Points = list[tuple[int, Ratio]]
"""Size, and milliseconds of wall time a step: median and range over the repetitions."""


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


def repeated(built: Setup, chunk: int, asked: Asked) -> Ratio:
    """Milliseconds of wall time, after one run to compile."""
    a_step(built, chunk)
    return ratio_of([a_step(built, chunk)[0] * 1e3 for _ in range(asked.repetitions)])


def measure(asked: Asked) -> Iterator[Table]:
    """The axes, and their figure."""
    same_threads(asked.threads)
    parts: list[Table] = []
    with numerics():
        for axis, (sizes, told) in AXES.items():
            parts.append(told(axis, sizes(asked)))
            yield parts[-1]
    figure(parts, asked.out / FIGURE)
    yield Table("all of them", (), (), f"![What a step costs against each axis]({FIGURE})")


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
        words += [f"observables.{name}.every={EVERY}" for name in job["observables"]]
        words[-1:] = [words[-1], "observables.train_loss.every=1"]
        points.append((count, repeated(setup(words, 50), 50, asked)))
    return {"digits": points}


def slope(points: Points) -> float:
    """Of log time against log size, over the larger half of the sizes and one more."""
    upper = points[len(points) // 2 - 1 :] if len(points) > 2 else points
    sizes, times = zip(*((size, ms.median) for size, ms in upper), strict=True)
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def sized(axis: str, lines: dict[str, Points]) -> Table:
    """An axis of sizes."""
    rows: list[list[Cell]] = [
        [name, size, ms, Ratio(*(each / size for each in ms))]
        for name, points in lines.items()
        for size, ms in points
    ]
    slopes = "; ".join(f"{name}: {slope(points):.2f}" for name, points in lines.items())
    columns = ("line", axis, "ms a step", f"over the {axis}")
    return Table(f"cost against {axis}", columns, rows, f"Slopes, log–log: {slopes}.")


def added(axis: str, lines: dict[str, Points]) -> Table:
    """An axis of things that cost each its own: what one more of them takes."""
    rows: list[list[Cell]] = []
    for points in lines.values():
        before = None
        for name, (_, ms) in zip(OBSERVABLES, points, strict=False):
            seen = before is not None and ms.low > before.high
            rows.append([name, ms, EVERY * (ms.median - before.median) if seen else None])
            before = ms
    columns = ("with this one too", "ms a step", "ms a measurement of it")
    note = (
        f"Each every {EVERY} steps. The last column is the difference of two medians; it is empty "
        "where the repetitions of the two overlap."
    )
    return Table(f"cost against {axis}", columns, rows, note)


AXES = {
    "parameters": (parameters, sized),
    "examples": (examples, sized),
    "members": (members, sized),
    "observables": (observables, added),
}


def figure(parts: Sequence[Table], path: Path) -> None:
    """One panel a table: log–log where it has sizes, else a bar a row."""
    import matplotlib as mpl  # noqa: PLC0415 - only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    drawn, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for ax, part in zip(axes.flat, parts, strict=True):
        if part.columns[0] == "line":
            _lines(ax, part)
        else:
            names, times = [row[0] for row in part.rows], [row[1].median for row in part.rows]
            ax.barh(names, times, log=True)
            ax.bar_label(ax.containers[0], fmt="{:.2g}", padding=2, fontsize="small")
            ax.invert_yaxis()
            ax.margins(x=0.15)
            ax.set(xlabel="ms a step, with this observable and those above it")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def _lines(ax: Any, part: Table) -> None:
    """Medians with their range, and what is proportional to the size."""
    for name in dict.fromkeys(row[0] for row in part.rows):
        points = [(row[1], row[2]) for row in part.rows if row[0] == name]
        sizes = np.asarray([size for size, _ in points])
        middle, low, high = np.asarray([ms for _, ms in points]).T
        (line,) = ax.loglog(sizes, middle, "o-", label=f"{name}: slope {slope(points):.2f}")
        ax.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2)
        ax.loglog(sizes, middle[-1] * sizes / sizes[-1], ":", color="grey", linewidth=1)
    ax.set(xlabel=part.columns[1], ylabel="ms a step")
    ax.legend(title="dotted: proportional", fontsize="small")
