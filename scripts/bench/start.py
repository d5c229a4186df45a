"""Time from command to the first logged step, and memory: cold and warm cache of programs.

The edge-of-stability problem (fc-tanh on the first 5,000 images of CIFAR-10; digits where it is not
there), losses alone, float32. A whole ``lmech`` process of its own; the first logged step is when
the engine hands the host its first chunk's rows, here a chunk of ten steps. Cold: an empty cache of
compiled programs, and new each repetition; warm: filled by a run before. Beside it the same ten
steps by the hand-written loops, in processes that do nothing else: jitted JAX, which has no cache
and compiles each time, and PyTorch; images drawn and not read. Memory is the process's largest
resident set.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.bench.asked import Asked, wanted
from scripts.bench.tables import Cell, Table
from scripts.bench.timing import environment, ratio_of, same_threads

STEPS = 10
PROBLEMS = {
    "cifar10": ("dataset=cifar10", "dataset.train_size=5000", "model.width=200"),
    "digits": ("dataset=digits", "model.width=200"),
}
RUN = (f"steps={STEPS * 2}", f"execution.chunk={STEPS}", "observables=[loss]")
RUN = (*RUN, "logger=none", "execution.mode=map")


def told(began: float) -> None:
    """Print the seconds since ``began`` (``time.time``), CPU seconds and memory, for the parent."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps([time.time() - began, time.process_time(), memory]), flush=True)


def lmech(began: float, words: list[str]) -> None:
    """A run, up to the first rows that reach the host."""
    from lmech import cli, engine  # noqa: PLC0415 - its time counts

    train = engine.train

    def watched(*arguments: Any, **options: Any) -> Iterator[object]:
        for event in train(*arguments, **options):
            if type(event).__name__ == "Record":
                told(began)
                os._exit(0)
            yield event

    engine.train = watched  # type: ignore[assignment]
    cli.main(words)


def jax(began: float, _: list[str]) -> None:
    """The hand-written scan; lmech is not imported."""
    import numpy as np  # noqa: PLC0415

    from scripts.bench import fc_loop  # noqa: PLC0415

    rng = np.random.default_rng(0)
    images = rng.normal(size=(5000, 3072)).astype(np.float32)
    run, arguments = fc_loop.scan(images, rng.integers(0, 10, 5000), STEPS)
    fc_loop.jax.block_until_ready(run(*arguments))
    told(began)


def pytorch(began: float, _: list[str]) -> None:
    """The hand-written loop; JAX is not imported."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    sizes = (nn.Linear(3072, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 10))
    model = nn.Sequential(*sizes)
    x, y = torch.randn(5000, 3072), torch.randn(5000, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _step in range(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum(-1).mean() / 2
        loss.backward()
        optimizer.step()
    told(began)


WAYS = {
    "lmech": lmech,
    "hand-written jit(scan), JAX": jax,
    "hand-written loop, PyTorch": pytorch,
}


def timed(way: str, words: tuple[str, ...], room: Path, cache: Path) -> list[float]:
    """Wall and CPU seconds to the first logged step, and memory."""
    script = (
        "import sys; from scripts.bench import start; "
        "start.WAYS[sys.argv[1]](float(sys.argv[2]), sys.argv[3:])"
    )
    command = [sys.executable, "-c", script, way, repr(time.time()), *words]
    with tempfile.TemporaryDirectory(dir=room) as folder:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            env=environment(LMECH_CACHE=str(cache)),
            capture_output=True,
            check=False,
        )
    lines = done.stdout.decode().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return json.loads(lines[-1])


def measure(asked: Asked) -> Iterator[Table]:
    """Cold, warm, and the loops beside them."""
    same_threads(asked.threads)
    problem = "digits" if asked.quick or not present() else "cifar10"
    words = (*PROBLEMS[problem], *RUN)
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        timed("lmech", words, room, room / "warm")
        for turn in range(asked.repetitions):
            sides = {
                "lmech, warm cache": ("lmech", room / "warm"),
                "lmech, cold cache": ("lmech", room / f"cold{turn}"),
                "hand-written jit(scan), JAX": ("hand-written jit(scan), JAX", room / "none"),
            }
            if wanted("torch") is not None:
                sides["hand-written loop, PyTorch"] = ("hand-written loop, PyTorch", room / "none")
            for name, (way, cache) in sides.items():
                found.setdefault(name, []).append(timed(way, words, room, cache))
    first = found["lmech, warm cache"]
    rows: list[list[Cell]] = [
        [
            name,
            *(statistics.median(values) for values in zip(*runs, strict=True)),
            ratio_of([run[0] / warm[0] for run, warm in zip(runs, first, strict=True)]),
        ]
        for name, runs in found.items()
    ]
    yield Table(
        f"to the first logged step, {problem}",
        ("side", "wall s", "CPU s", "memory GiB", "wall over lmech's, warm"),
        rows,
        f"{STEPS} steps to the first rows; a process of its own each, in turns.",
        commands=("lmech " + " ".join(words),),
    )


def present() -> bool:
    """Whether CIFAR-10 is there."""
    from lmech.datasets import cifar10, files  # noqa: PLC0415 - children need no JAX here

    try:
        files.locate(cifar10.SOURCE)
    except files.DataNotFound:
        return False
    return True
