"""Execute docs/notebook.ipynb in place, in an empty folder: ``python scripts/notebook.py``.

The progress lines, which have the time that it took, stay as text.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FILE = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy with the outputs of this machine. Raises CellExecutionError."""
    copy = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(copy, timeout=600, resources={"metadata": {"path": folder}})
        client.execute()
    for cell in copy.cells:
        cell.metadata.clear()  # when it ran
    return copy


def main() -> None:
    """Replace the outputs."""
    notebook = executed(nbformat.read(FILE, as_version=4))
    nbformat.write(notebook, FILE)
    print(f"{FILE}: {FILE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
