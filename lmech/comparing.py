"""Compare finished runs, pair by pair, from the weights that they kept. Trains nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from hydra.utils import instantiate

from lmech import building, compiling, manifest, member, mistakes, pairs, programs, snapshots
from lmech.building import Setup
from lmech.comparisons import Comparison
from lmech.datasets import Data
from lmech.inputs import Room
from lmech.manifest import Entry
from lmech.member import Program
from lmech.numerics import trees
from lmech.numerics.precision import numerics
from lmech.observables import State
from lmech.pairs import Pair
from lmech.problem import Params
from lmech.values import ConfigError

Left = list[tuple[pairs.Comparison, list[Pair]]]
COMPARISON = "an lmech.comparisons.Comparison"


def compare(sweep: Path, left: Left) -> None:
    """Measure these pairs of a sweep and add them to its tables.

    Raises ConfigError for a pair of two programs, for a job that would not be today what it was,
    and with the comparison's name for what it raises.
    """
    entries = {entry["id"]: entry for entry in manifest.read(sweep)}
    for job in dict.fromkeys(job for _, own in left for pair in own for job in pair[:2]):
        what = manifest.changed(entries[job])
        if what:
            raise ConfigError(f"job {job}: its {what} changed since its manifest was written")
    groups: dict[str, Left] = {}
    for comparison, own in left:
        for group in dict.fromkeys(_group(entries, comparison, pair) for pair in own):
            chosen = [pair for pair in own if entries[pair.job]["group"] == group]
            groups.setdefault(group, []).append((comparison, chosen))
    if any(entry["config"]["execution"]["compile_cache"] for entry in entries.values()):
        compiling.keep()
    rows: dict[str, list[dict[str, Any]]] = {comparison.name: [] for comparison, _ in left}
    for number, asked in enumerate(groups.values(), start=1):
        count = sum(len(own) for _, own in asked)
        print(f"comparing: program {number} of {len(groups)}, {count} pairs", flush=True)
        for comparison, pair, values in _of_program(sweep, entries, asked):
            rows[comparison.name].append({**pair._asdict(), **values})
    for comparison, _ in left:
        if rows[comparison.name]:
            pairs.write(sweep, comparison, rows[comparison.name])


def _group(entries: Mapping[str, Entry], comparison: pairs.Comparison, pair: Pair) -> str:
    """The program of a pair. Raises ConfigError where there are two."""
    one, other = (str(entries[job]["group"]) for job in (pair.job, pair.other))
    pairs.check_program(comparison, one, other)
    return one


class Visit(NamedTuple):
    """One run at the weights of a step: leaves of one member, without an axis of members."""

    inputs: Any
    start: Params
    params: Params
    step: Any
    time: Any
    feed: Any


def _of_program(sweep: Path, entries: Mapping[str, Entry], asked: Left) -> list[Any]:
    """Each comparison and pair with what was found, of runs that share a program."""
    jobs = list(dict.fromkeys(job for _, own in asked for pair in own for job in pair[:2]))
    configs = [_alone(entries[job]["config"]) for job in jobs]
    with numerics(configs[0]["precision"]["matmul"]):
        whole = building.extent(configs, building.load_data(configs[0]))
        room = (entries[jobs[0]]["execution"] or {}).get("room")
        setup = building.build(configs, whole=whole._replace(room=Room(*room) if room else None))
        if setup.program.subspace is not None:
            raise ConfigError("runs in a subspace have coordinates of their own: not comparable")
        start = programs.initial_weights(setup.program, setup.inputs, setup.params)
        compiled: dict[Any, Any] = {}
        found = []
        for comparison, own in asked:
            made = _made(comparison)
            jitted = compiled.setdefault(made.compare, _jitted(setup.program, made.compare))
            for pair in own:
                visits = [
                    _visit(sweep / job, setup, start, jobs.index(job), step)
                    for job, step in ((pair.job, pair.step), (pair.other, pair.other_step))
                ]
                with _named(comparison):
                    values = _compared(setup, made, jitted, visits)
                found.append((comparison, pair, values))
    return found


def _alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The job's config on one device, with nothing to observe."""
    execution = {**config["execution"], "devices": 1, "share": "members"}
    return {**config, "observables": {}, "execution": execution}


def _made(comparison: pairs.Comparison) -> Comparison:
    with _named(comparison):
        made = instantiate(comparison.node)
        mistakes.expect(made, Comparison, "it", comparison.node["_target_"], COMPARISON)
    return made


@contextmanager
def _named(comparison: pairs.Comparison) -> Iterator[None]:
    """Errors inside the block are ConfigErrors that name the comparison."""
    try:
        yield
    except Exception as error:
        name = f"comparisons.{comparison.name}"
        raise ConfigError(f"{name}: {mistakes.one_line(error)}") from error


def _visit(folder: Path, setup: Setup, start: Params, place: int, step: int) -> Visit:
    """A run's inputs and kept weights of a step."""
    own = trees.take(start, place)
    files = snapshots.kept(folder)
    if step > 0 and step not in files:
        raise ConfigError(f"{folder.name} kept no weights at step {step}")
    rates = setup.rates(np.arange(step))[place]
    return Visit(
        inputs=trees.take(setup.inputs, place),
        start=own,
        params=building.kept_weights(files[step], own) if step in files else own,
        step=np.int32(step),
        time=rates.sum(dtype=rates.dtype),
        feed=trees.take(setup.feed(step), place),
    )


Compare = Callable[[State, State, Params], Mapping[str, Any]]


def _jitted(program: Program, compare: Compare) -> Any:
    """The comparison as one program of two visits."""

    def compared(a: Visit, b: Visit, aligned: Params, data: Data) -> Mapping[str, Any]:
        one, other = (member.visited(program, *visit, data) for visit in (a, b))
        return compare(one, other, aligned)

    return jax.jit(compared)


def _compared(
    setup: Setup, made: Comparison, jitted: Any, visits: Sequence[Visit]
) -> dict[str, Any]:
    """What a comparison says of two visits, as plain numbers and lists."""
    aligned = visits[1].params
    if made.align is not None:
        one, other = (member.visited(setup.program, *visit, setup.data) for visit in visits)
        aligned = made.align(one, other)
    values = jax.device_get(jitted(*visits, aligned, setup.data))
    for name, value in values.items():
        if name in pairs.LABELS or np.ndim(value) > 1:
            raise ValueError(f"{name}: write numbers and vectors, by names that are no label's")
    return {name: np.asarray(value).tolist() for name, value in values.items()}
