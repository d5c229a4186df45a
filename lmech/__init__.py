"""lmech: a lab bench for learning mechanics.

``import lmech`` is light: JAX is imported when something trains, not before.
"""

from pathlib import Path

from lmech.collecting import collect

__all__ = ["__version__", "collect"]
__version__ = "0.1.0"

# In a wheel `conf` and `experiments` lie inside the package. In a checkout they stand beside it,
# so the checkout's root joins the package's search path: `lmech.experiments` is found either way,
# and never a folder of that name in the user's working directory.
if not (Path(__file__).parent / "conf").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
