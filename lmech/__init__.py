"""lmech: a lab bench for learning mechanics.

``import lmech`` is light: JAX is imported when something trains, pandas when tables are read.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmech.calling import reproduce, run, sweep
    from lmech.collecting import collect

__all__ = ["__version__", "collect", "reproduce", "run", "sweep"]
__version__ = "0.1.0"

_FUNCTIONS = {
    "collect": "lmech.collecting",
    "reproduce": "lmech.calling",
    "run": "lmech.calling",
    "sweep": "lmech.calling",
}


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'lmech' has no attribute '{name}'")
    return getattr(importlib.import_module(_FUNCTIONS[name]), name)


# In a wheel `conf` and `experiments` lie inside the package. In a checkout they stand beside it,
# so the checkout's root joins the package's search path: `lmech.experiments` is found either way,
# and never a folder of that name in the user's working directory.
if not (Path(__file__).parent / "conf").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
