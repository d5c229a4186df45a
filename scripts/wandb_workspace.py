"""A wandb workspace for a sweep: every scalar column against step, and what the sweep is about.

    python scripts/wandb_workspace.py ENTITY PROJECT outputs/run/3f2a9c

after ``lmech … logger=wandb``. It groups the runs by the swept keys but the seed, so that a line is
a mean over seeds, shows how the final training loss depends on each swept number, and the figure
and claims of the verdict. Needs ``pip install wandb-workspaces`` and a login.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as panels
from wandb_workspaces import workspaces

from lmech import collecting
from lmech.collecting import Run

FIRST = ("train_loss", "batch_loss", "test_loss", "train_accuracy", "test_accuracy", "sharpness")
"""Columns that come first, where they were recorded."""


def scalars(runs: Sequence[Run]) -> list[str]:
    """Columns that hold a number a step, in any of the runs; what one looks at first in front."""
    found = {name for run in runs for name, v in run.result["final"].items() if _is_number(v)}
    return [name for name in FIRST if name in found] + sorted(found - set(FIRST))


def swept(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The keys that have several values, with these."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    values = {key: [run.overrides.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if len({repr(v) for v in found}) > 1}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def workspace(entity: str, project: str, sweep: Path) -> workspaces.Workspace:
    """A sweep's workspace, not saved yet. Raises ValueError if no run has a result."""
    runs = collecting.read_runs(sweep)
    if not runs:
        raise ValueError(f"{sweep}: no run has a result")
    keys = swept(runs)
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"{sweep.parent.name} {sweep.name}",
        sections=[
            workspaces.Section(
                name="against step",
                panels=[panels.LinePlot(x="step", y=[name]) for name in scalars(runs)],
                is_open=True,
            ),
            workspaces.Section(name="swept", panels=_dependences(keys), is_open=True),
            workspaces.Section(
                name="verdict", panels=[panels.MediaBrowser(media_keys=["figure"])], is_open=True
            ),
        ],
        settings=workspaces.WorkspaceSettings(x_axis="step"),
        runset_settings=workspaces.RunsetSettings(
            filters=f"Metric('Group') == '{sweep.name}'",
            groupby=[workspaces.Config(_place(key)) for key in keys if key != "seed"],
        ),
    )


def _place(key: str) -> str:
    """Where a swept key is in a run's config; a choice of a group is among the overrides alone."""
    return key if "." in key or key == "seed" else f"overrides.{key}"


def _dependences(keys: Mapping[str, Sequence[Any]]) -> list[panels.ScatterPlot]:
    """The final training loss against each swept number, logarithmic where that is positive."""
    numbers = {key: values for key, values in keys.items() if all(map(_is_number, values))}
    return [
        panels.ScatterPlot(
            x=panels.Config(_place(key)),
            y=panels.SummaryMetric("train_loss"),
            log_x=min(values) > 0,
            log_y=True,
        )
        for key, values in numbers.items()
        if key != "seed"
    ]


if __name__ == "__main__":
    entity, project, sweep = sys.argv[1:]
    print(workspace(entity, project, Path(sweep)).save().url)
