"""TensorBoard: event files under ``<sweep>/tensorboard``, a folder a job, and one of the sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from lmech.loggers.replay import Beside

if TYPE_CHECKING:
    from lmech.loggers.events import Events


def _events(folder: Path) -> "Events":
    from lmech.loggers.events import Events  # noqa: PLC0415 the process beside imports tensorboardX

    return Events(folder)


def tensorboard(
    seconds: Annotated[float, Gt(0)] = 5.0, patience: Annotated[float, Ge(0)] = 60.0
) -> Beside:
    """Event files, written on every so many ``seconds``; see ``Beside`` for ``patience``."""
    return Beside("tensorboard", _events, seconds, patience)
