"""What a job's parametrization does to each tensor, as a table."""

from collections.abc import Sequence

from rich.table import Table

from lmech import building, checking, formats, modelling, planning, roles, values
from lmech.numerics import trees
from lmech.planning import Job
from lmech.values import Config

COLUMNS = (
    *("tensor", "shape", "role", "× width", "init std", "multiplier", "learning rate"),
    *("decay", "ε"),
)
DECIDING = ("model", "parametrization", "optimizer", "output_scale")


def parametrizations(jobs: Sequence[Job]) -> list[Table]:
    """A table for each parametrization of each model that the jobs have. Raises ConfigError."""
    found: dict[str, Table] = {}
    for job in jobs:
        key = planning.digest([job.config[part] for part in DECIDING])
        if key not in found:
            found[key] = parametrization(job)
    return list(found.values())


def parametrization(job: Job) -> Table:
    """Tensor by tensor: role, the spread of its first values, and the factors beside the optimizer.

    The learning rate, the decay's weight and Adam's ε are multiplied by theirs. The init's standard
    deviation is that of the model's own draws, times the parametrization's scale; bounds of its
    error are a few per cent. Raises ConfigError.
    """
    with checking.tracing(job.config):
        return _table(job.config, _title(job))


def _title(job: Job) -> str:
    keys = [f"{k}={v}" for k, v in job.overrides.items() if k.partition(".")[0] in DECIDING]
    target = job.config["parametrization"]["_target_"].rpartition(".")[2]
    return f"parametrization: {', '.join(keys) or target}"


def _table(job: Config, title: str) -> Table:
    data = building.load_data(job)
    model, (scales,) = modelling.model_of(job, data), modelling.scales_of([job], data)
    trees_of = (scales.init, scales.multiplier, scales.learning_rate, scales.decay, scales.epsilon)
    factors = [trees.named_leaves(tree) for tree in trees_of]
    spreads = trees.named_leaves(model.spread_at(model.width))
    known, base = {}, values.select(job, "parametrization.base_width")
    if model.width is not None:
        known = {t.path: t for t in roles.tensors(model, base or model.width, None)}
    table = Table(*COLUMNS, title=title)
    for path, leaf in trees.named_leaves(model.shapes).items():
        init, *others = (column[path] for column in factors)
        tensor = known.get(path)
        table.add_row(
            path,
            " × ".join(map(str, leaf.shape)),
            tensor.role if tensor else "",
            formats.number(tensor.width) if tensor and base else "–",
            formats.number(float(init * spreads[path])),
            *(formats.number(float(factor)) for factor in others),
        )
    return table
