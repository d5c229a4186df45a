"""lmech: a lab bench for learning mechanics.

``import lmech`` is light: JAX is imported when something trains, pandas when tables are read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmech.collecting import collect

__all__ = ["__version__", "collect"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "collect":
        raise AttributeError(f"module 'lmech' has no attribute '{name}'")
    from lmech.collecting import collect

    return collect


# In a wheel `conf` and `experiments` lie inside the package. In a checkout they stand beside it,
# so the checkout's root joins the package's search path: `lmech.experiments` is found either way,
# and never a folder of that name in the user's working directory.
if not (Path(__file__).parent / "conf").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
