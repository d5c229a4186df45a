"""What a batch's state on disk says of itself, without its arrays. No JAX here."""

import json
import zipfile
from pathlib import Path

import numpy as np

STATE = "state.npz"
BROKEN = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile)
"""What reading a damaged state raises."""


class DamageError(ValueError):
    """A state that cannot be read: one line that names its folder."""


def damaged(folder: Path, error: Exception) -> DamageError:
    """What to raise for a folder whose state cannot be read."""
    return DamageError(
        f"{folder}: its state cannot be read ({error}); delete the folder to start over"
    )


def holds(folder: Path) -> tuple[int, list[str]]:
    """The step of the folder's state and the identities of its members, without reading it all.

    Raises DamageError.
    """
    try:
        with (folder / STATE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            head = json.loads(arrays["head"].item())
        return int(head["step"]), list(head["ids"])
    except BROKEN as error:
        raise damaged(folder, error) from error
