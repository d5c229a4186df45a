"""The loggers of a sweep together: what one of them does costs no number, and no other logger."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate

from lmech.loggers import Progress
from lmech.mistakes import one_line
from lmech.values import ConfigError

if TYPE_CHECKING:
    from lmech.loggers.replay import Beside

Show = Callable[[Progress], None]


def named(chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Loggers by name; a manifest of an earlier version has a single one, without a name."""
    return {"logger": chosen} if "_target_" in chosen else chosen


@contextmanager
def following(chosen: Mapping[str, Any], folder: Path) -> Iterator[Show]:
    """Of a config's ``logger`` section, the loggers at once; the value shows to each of them."""
    with ExitStack() as stack:
        loggers = [
            stack.enter_context(_guarded(name, node, folder))
            for name, node in named(chosen).items()
        ]

        def show(progress: Progress) -> None:
            for logger in loggers:
                logger(progress)

        yield show


@contextmanager
def _guarded(name: str, node: Any, folder: Path) -> Iterator[Show]:
    """A logger that its first exception silences, with a line that says so."""
    broken = False

    def attempt(call: Callable[..., Any], *what: Any) -> Any:
        nonlocal broken
        try:
            return call(*what)
        except Exception as error:
            if not broken:
                print(f"lmech: the logger {name} stopped: {one_line(error)}", file=sys.stderr)
            broken = True
            return None

    def begun() -> tuple[AbstractContextManager[Show], Show]:
        context = instantiate(node)(folder)
        return context, context.__enter__()

    context, own = attempt(begun) or (None, None)

    def show(progress: Progress) -> None:
        if not broken and own is not None:
            attempt(own, progress)

    try:
        yield show
    finally:
        if context is not None:
            attempt(context.__exit__, *sys.exc_info())


def replays(chosen: Mapping[str, Any]) -> list["Beside"]:
    """Of a config's ``logger`` section, those that repeat what lies on disk. Raises ConfigError."""
    from lmech.loggers.replay import Beside  # noqa: PLC0415 pyarrow, where nothing is replayed

    loggers = {name: instantiate(node) for name, node in chosen.items()}
    for name, logger in loggers.items():
        if not isinstance(logger, Beside):
            raise ConfigError(f"logger={name} shows a run as it goes, and repeats nothing later")
    return list(loggers.values())
