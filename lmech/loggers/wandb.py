"""Weights & Biases: a run a job, of the job's id, grouped by sweep, and a run of the verdict.

Online where wandb finds credentials (or ``WANDB_MODE`` says so), else offline, under the sweep's
folder. wandb is imported by the process beside the training alone.
"""

import math
import os
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt

from lmech import formats
from lmech.loggers.replay import Beside, Ending, Told, Values, Verdict, entries

SECRET = re.compile(r"key$|token|secret|password", re.IGNORECASE)
LIMIT = 64
"""Characters of a tag."""
QUIET = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "silent": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""No capture of the terminal, code, git, machine or packages: lmech's files have what matters."""


class Runs:
    """The sink."""

    def __init__(
        self, folder: Path, project: str | None, entity: str | None, patience: float
    ) -> None:
        """No run yet. A server has ``patience`` seconds for its answers, 30 at most for a run."""
        import wandb  # noqa: PLC0415 the training's process names this sink, and opens none

        self._wandb: Any = wandb
        self._entity = entity
        self._project = project or os.environ.get("WANDB_PROJECT") or "lmech"
        known = type(wandb.Settings()).model_fields  # some of them are not in every version
        limits = {"init_timeout": min(30.0, patience), "finish_timeout": patience}
        settings = {**QUIET, **limits}
        self._settings = {name: value for name, value in settings.items() if name in known}
        self._folder = Path(os.environ.get("WANDB_DIR") or folder)
        self._mode = os.environ.get("WANDB_MODE") or ("online" if credentials() else "offline")
        self._runs: dict[str, Any] = {}
        self._objectives: dict[str, str | None] = {}
        self._url = ""

    @property
    def live(self) -> bool:
        """Offline a run cannot be gone on with, so it is written whole when its job has ended."""
        return self._mode != "offline"

    def begin(self, job: Told) -> int:
        """A run of the job's id: offline a new one, online from the server's last step on."""
        told = {**job.config, "overrides": dict(job.overrides)}
        name = ", ".join(f"{key.rpartition('.')[2]}={v}" for key, v in job.overrides.items())
        run = self._opened(
            _own_id() or job.id,
            group=job.sweep,
            name=name[:128] or None,
            job_type="job",
            tags=[text[:LIMIT] for text in (*job.overrides, *job.sweeps)],
            config=without_secrets(told),
        )
        self._runs[job.id], self._objectives[job.id] = run, job.config["objective"]
        return int(run.starting_step)

    def _opened(self, identity: str, name: str | None, **what: Any) -> Any:
        if self._mode == "offline":
            for old in (self._folder / "wandb").glob(f"offline-run-*-{identity}"):
                shutil.rmtree(old)
        self._folder.mkdir(parents=True, exist_ok=True)
        run = self._wandb.init(
            project=self._project,
            entity=self._entity,
            id=identity,
            name=name,
            dir=str(self._folder),
            mode=self._mode,
            reinit="create_new",
            resume="allow" if self.live else None,
            settings=self._wandb.Settings(**self._settings),
            **what,
        )
        if self.live:
            self._url = self._url or run.project_url or ""
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def row(self, job: str, step: int, values: Values) -> None:
        """One ``log``; of long vectors a histogram of what is finite."""
        told = {
            name: value if isinstance(value, float) else self._wandb.Histogram(value)
            for name, value in entries(values).items()
        }
        self._runs[job].log({"step": step, **told}, step=step)

    def end(self, job: str, ending: Ending) -> None:
        """Final values and how it ended; what is not done has a tag and an exit code too."""
        run, result = self._runs.pop(job), ending.result
        final = result.get("final", {})
        run.summary.update({name: v for name, v in final.items() if isinstance(v, float)})
        keys = ("status", "steps", "nonfinite_at")
        run.summary.update({key: result[key] for key in keys if result.get(key) is not None})
        column = self._objectives.pop(job)
        if column in final:  # what a search minimises: a run that diverged is the worst
            run.summary["objective"] = math.inf if final[column] is None else final[column]
        if ending.reason:
            run.summary["error"] = ending.reason
        if ending.status != "done":
            run.tags = (*run.tags, ending.status)
        run.finish(exit_code=int(ending.status != "done"))

    def verdict(self, verdict: Verdict) -> None:
        """A run of the sweep's id: figure, claims, counts. A search's single job has none."""
        if _own_id():
            return
        run = self._opened(
            verdict.sweep,
            group=verdict.sweep,
            name=f"{verdict.experiment or 'sweep'}: verdict",
            job_type="verdict",
            tags=[verdict.sweep],
            config={"experiment": verdict.experiment},
        )
        if verdict.figure is not None:
            run.log({"figure": self._wandb.Image(str(verdict.figure))})
        if verdict.claims:
            columns = ["claim", "measured", "unit", "interval", "verdict", "expected", "source"]
            rows = [[_cell(claim, name) for name in columns] for claim in verdict.claims]
            run.log({"claims": self._wandb.Table(columns=columns, data=rows)})
        counts = ("jobs", "done", "diverged", "failed", "skipped", "missing")
        run.summary.update({name: verdict.summary[name] for name in counts})
        run.finish(exit_code=0)

    def close(self) -> list[str]:
        """Runs of jobs that were cut off are failed ones, until their jobs go on."""
        for run in self._runs.values():
            run.finish(exit_code=1)
        if self._mode == "offline":
            return [f"wandb: offline; wandb sync {self._folder / 'wandb'}/offline-run-*"]
        return [f"wandb: {self._url}"] if self._url else []


def _cell(claim: Mapping[str, Any], name: str) -> Any:
    return formats.interval(claim[name]) if name == "interval" else claim.get(name)


def _own_id() -> str | None:
    """The run that wandb's agent has made for this process's job, in a search of wandb's."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def without_secrets(value: Any) -> Any:
    """The config without keys that may hold a secret, at any depth."""
    if isinstance(value, Mapping):
        return {k: without_secrets(v) for k, v in value.items() if not SECRET.search(str(k))}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def credentials() -> bool:
    """Whether wandb would find any: in the environment, its settings, or the user's netrc."""
    import wandb  # noqa: PLC0415
    from wandb.sdk.lib.wbauth import read_netrc_auth  # noqa: PLC0415

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    return read_netrc_auth(host=settings.base_url) is not None


def wandb(
    project: str | None = None,
    entity: str | None = None,
    seconds: Annotated[float, Gt(0)] = 5.0,
    patience: Annotated[float, Gt(0)] = 60.0,
) -> Beside:
    """Runs of a ``project`` (null: as wandb is set up, else lmech) of an ``entity``'s.

    Rows are sent every so many ``seconds``; see ``Beside`` for ``patience``.
    """
    runs = partial(Runs, project=project, entity=entity, patience=patience)
    return Beside("wandb", runs, seconds, patience)
