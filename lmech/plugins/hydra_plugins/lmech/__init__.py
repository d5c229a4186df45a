"""``hydra/sweeper=lmech`` and ``hydra/launcher=lmech``: a sweep as one run of lmech.

Hydra finds its plugins in the namespace package ``hydra_plugins``, and imports all of them whenever
it starts, in other people's applications too. So this imports nothing of lmech before it is used.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

TASK = "lmech.application.task"


def _refuse_others(name: str, task: TaskFunction) -> None:
    """Raise what Hydra prints as a line for a task that is not ours."""
    called = f"{task.__module__}.{getattr(task, '__qualname__', task)}"
    if called != TASK:
        raise CompactHydraException(
            f"{name}=lmech was asked to run {called}, but runs {TASK} only: "
            f"write {name}=basic, or start the sweep with `lmech -m`"
        )


class LmechSweeper(Sweeper):
    """What ``lmech -m`` does: every combination, all of them as one sweep in this process."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Refuse other tasks, and other launchers. Raises CompactHydraException."""
        _refuse_others("hydra/sweeper", task_function)
        self.hydra_context, self.config = hydra_context, config
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        if launcher != "lmech":
            raise CompactHydraException(
                "hydra/sweeper=lmech launches its jobs itself; "
                f"with hydra/launcher={launcher} write hydra/sweeper=basic"
            )

    def sweep(self, arguments: list[str]) -> None:
        """Train what the arguments range over."""
        from lmech import application

        application.sweep(arguments)


class LmechLauncher(Launcher):
    """All jobs of a call as one sweep in this process: one program for all that can share it."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Refuse other tasks. Raises CompactHydraException."""
        _refuse_others("hydra/launcher", task_function)
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Train the jobs; their returns in the order of ``job_overrides``."""
        from lmech import application

        return application.launch(self.hydra_context, self.config, job_overrides, initial_job_idx)


def _offer(group: str, plugin: type) -> None:
    node: Any = {"_target_": f"{plugin.__module__}.{plugin.__name__}"}
    ConfigStore.instance().store(group=group, name="lmech", node=node, provider="lmech")


_offer("hydra/sweeper", LmechSweeper)
_offer("hydra/launcher", LmechLauncher)
