"""The house in numbers, as a Markdown table: ``python scripts/house.py [REVISION …]``.

One column a revision, then one of the files as they are. A function's lines are those from its
``def`` to its end, without its docstring; one inside another counts for both. Public names are the
functions, classes and constants at the top of the package's modules that have no underscore.
"""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("lmech", "experiments")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(part: str) -> dict[str, str]:
    """Path → text of a part's modules, as they are."""
    files = sorted((ROOT / part).rglob("*.py"))
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


def sources_at(revision: str, part: str) -> dict[str, str]:
    """The same at a revision."""
    listed = _git("ls-tree", "-r", "--name-only", revision, "--", part).splitlines()
    return {path: _git("show", f"{revision}:{path}") for path in listed if path.endswith(".py")}


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True)  # noqa: S603, S607
    return done.stdout.decode()


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring apart."""
    first, docstring = function.body[0], ast.get_docstring(function, clean=False)
    told = 0 if docstring is None else (first.end_lineno or 0) - first.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - told


def lengths(files: Mapping[str, str]) -> dict[str, int]:
    """``path:line name`` → lines, of every function."""
    return {
        f"{path}:{node.lineno} {node.name}": length(node)
        for path, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, FUNCTIONS)
    }


def names(text: str) -> list[str]:
    """What a module's top level defines."""
    found: list[str] = []
    for node in ast.parse(text).body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found.append(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def numbers(package: Mapping[str, str], experiments: Mapping[str, str]) -> dict[str, str]:
    """What the table says of them."""
    files = {**package, **experiments}
    counts, rows = lengths(files), {path: len(text.splitlines()) for path, text in files.items()}
    longest, module = max(counts, key=lambda f: counts[f]), max(rows, key=lambda path: rows[path])
    public = [n for text in package.values() for n in names(text) if not n.startswith("_")]
    over = sum(count > 25 for count in counts.values())
    return {
        "modules": f"{len(package)} + {len(experiments)}",
        "lines": f"{_lines(package):,} + {_lines(experiments):,}",
        "longest module": f"{rows[module]} (`{module}`)",
        "functions": f"{len(counts):,}",
        "lines of a function, median": f"{statistics.median(counts.values()):g}",
        "functions over 25 lines": f"{over} ({over / len(counts):.1%})",
        "longest function": f"{counts[longest]} (`{longest.partition(' ')[2]}`)",
        "public names": str(len(public)),
    }


def _lines(files: Mapping[str, str]) -> int:
    return sum(len(text.splitlines()) for text in files.values())


def table(columns: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """Markdown."""
    yield "| | " + " | ".join(columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for row in next(iter(columns.values())):
        yield f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |"


def main(revisions: list[str]) -> None:
    """Print the table."""
    columns = {
        f"`{revision}`": numbers(*(sources_at(revision, part) for part in PARTS))
        for revision in revisions
    }
    print("\n".join(table({**columns, "now": numbers(*map(sources, PARTS))})))


if __name__ == "__main__":
    main(sys.argv[1:])
