"""The commands as functions, for notebooks and scripts: ``lmech.run``, ``sweep``, ``reproduce``.

What they take are the words of the command line, ``"optimizer.learning_rate=0.1"``, and mappings
from keys to Python's values, ``{"optimizer.learning_rate": 0.1}``; keyword arguments are such a
mapping of the keys that have no dot. They write and read the same folders as the commands: what has
a result there is not trained again.
"""

import base64
import html
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmech import formats, launching, planning, project
from lmech.disk import read_json
from lmech.mistakes import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from lmech.collecting import Run, Steps
    from lmech.reproducing import Outcome

Given = str | Mapping[str, Any]
PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
"""Texts that Hydra's grammar takes for themselves, but for these."""
SPOKEN_FOR = {"null", "true", "false", "nan", "inf", "on", "off", "yes", "no"}


def run(*words: Given, **keys: Any) -> "Result":
    """Train one run, as `lmech KEY=VALUE …` does.

    ``lmech.run("dataset=digits", {"optimizer.learning_rate": 0.1}, steps=500)``. Raises ConfigError
    for what cannot be, in one line, before anything is compiled or written.
    """
    from lmech import reproducing

    _begin()
    given = list(_words(words, keys, several=False))
    jobs = launching.jobs_of(given, multirun=False)
    return _result(reproducing.run(jobs, launching.command(given)))


def sweep(*words: Given, **keys: Any) -> "Result":
    """Train every combination, as `lmech -m KEY=VALUES …` does.

    ``lmech.sweep("model.width=64,128", {"optimizer.learning_rate": [0.1, 0.2]}, seed=range(3))``. A
    list, tuple, range or array is what a key ranges over; of ``observables``, where it is one
    choice, as on the command line. Raises ConfigError.
    """
    from lmech import reproducing

    _begin()
    given = list(_words(words, keys, several=True))
    jobs = launching.jobs_of(given, multirun=True)
    return _result(reproducing.run(jobs, launching.command(["-m", *given])))


def reproduce(experiment: str, /, *words: Given, scale: str = "default", **keys: Any) -> "Result":
    """Run an experiment's sweep and judge its claims, as `lmech reproduce` does.

    ``lmech.reproduce("edge_of_stability", seed=range(3))``: a list is what a key ranges over.
    Raises ConfigError.
    """
    from lmech import reproducing

    _begin()
    given = list(_words(words, keys, several=True))
    scaled = ["--scale", scale] if scale != "default" else []
    line = launching.command(["reproduce", experiment, *given, *scaled])
    return _result(reproducing.reproduce(experiment, scale, given, line))


def _begin() -> None:
    """The user's modules are importable; their data and code are what they are now."""
    project.join()
    planning.forget()


def _result(outcome: "Outcome") -> "Result":
    for job, trace in outcome.failures.items():
        print(f"failed: {job}: {trace}", file=sys.stderr)
    return Result(outcome.folder, outcome.counts, outcome.failures)


class Picture(NamedTuple):
    """A figure on disk, which a notebook shows."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


class Result:
    """What a sweep left in its folder.

    - ``folder``: where it lies; ``counts``: its jobs by status; ``failures``: job → why it failed.
    - ``collect(columns, steps)``: its numbers as a pandas frame, one row a run and step.
    - ``runs``: a ``lmech.collecting.Run`` a job that has a result; configs and metrics.
    - ``figure``: its figure, shown inline; ``report``: its report.html.
    - ``claims``: of an experiment, a pandas frame with a row a claim; else an empty one.
    """

    def __init__(self, folder: Path, counts: Mapping[str, int], failures: Mapping[str, str]):
        """Read nothing yet."""
        self.folder, self.counts, self.failures = folder, dict(counts), dict(failures)

    def collect(
        self, columns: Sequence[str] | None = None, steps: "Steps | str | None" = None
    ) -> "pd.DataFrame":
        """The recorded numbers; see ``lmech.collect``."""
        from lmech.collecting import collect

        return collect(self.folder, columns, steps)

    @cached_property
    def runs(self) -> "list[Run]":
        """The jobs that have a result."""
        from lmech.collecting import read_runs

        return read_runs(self.folder)

    @property
    def figure(self) -> Picture:
        """Its figure. Raises FileNotFoundError if no run has a result."""
        return Picture(self._there("figure.png"))

    @property
    def report(self) -> Path:
        """Its report.html. Raises FileNotFoundError if no run has a result."""
        return self._there("report.html")

    def _there(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} in {self.folder}: no run of it has a result")
        return path

    @cached_property
    def claims(self) -> "pd.DataFrame":
        """The claims of claims.json, in order."""
        import pandas as pd

        return pd.DataFrame(self._judged)

    @cached_property
    def _judged(self) -> Any:
        path = self.folder / "claims.json"
        return read_json(path, list) if path.is_file() else []

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)
        judged = f", {launching.told(self._judged)}" if self._judged else ""
        return f"<{counts}{judged}: {self.folder}>"

    def _repr_html_(self) -> str:
        """Counts, failures, claims and the figure."""
        lines = [f"<p>{html.escape(repr(self)[1:-1])}</p>"]
        lines += [
            f"<p>failed: {html.escape(f'{job}: {why}')}</p>" for job, why in self.failures.items()
        ]
        if self._judged:
            lines.append(claims_html(self._judged))
        if (self.folder / "figure.png").is_file():
            data = base64.b64encode(self.figure.path.read_bytes()).decode()
            lines.append(f'<img src="data:image/png;base64,{data}" alt="figure.png">')
        return "\n".join(lines)


def claims_html(judged: Sequence[Mapping[str, Any]]) -> str:
    """The closing table of `lmech reproduce`, as HTML."""
    heads = ("claim", "measured", "interval", "verdict", "expected")
    rows = [
        (
            one["claim"],
            f"{formats.number(one['measured'])} {one['unit']}".strip(),
            formats.interval(one["interval"]),
            one["verdict"] + ("" if one["expected"] in ("open", one["verdict"]) else " (!)"),
            one["expected"],
        )
        for one in judged
    ]
    table = "".join(_cells("td", row) for row in rows)
    return f"<table><thead>{_cells('th', heads)}</thead><tbody>{table}</tbody></table>"


def _cells(tag: str, row: Sequence[str]) -> str:
    style = ' style="text-align: left"'
    cells = "".join(f"<{tag}{style}>{html.escape(cell)}</{tag}>" for cell in row)
    return f"<tr>{cells}</tr>"


# ------------------------------------------------------------------ Python's values as words


def _words(given: Sequence[Given], keys: Mapping[str, Any], several: bool) -> Iterator[str]:
    """The words of a command line; ``several``: lists are values to range over."""
    for one in (*given, keys):
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            yield from (f"{key}={_values(key, value, several)}" for key, value in one.items())
        else:
            raise ConfigError(
                f"{one!r}: write words, 'steps=500', or a dict, {{'optimizer.learning_rate': 0.1}}"
            )


def _values(key: str, value: Any, several: bool) -> str:
    """What stands behind a key's ``=``."""
    value = _plain(value)
    if not several or not isinstance(value, list) or key == "observables":
        return written(value)
    if not value:
        raise ConfigError(f"{key}=[]: a sweep needs a value at least")
    return ",".join(map(written, value))


def _plain(value: Any) -> Any:
    """Lists for tuples, ranges and arrays, Python's numbers for numpy's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple | range) else value


def written(value: Any) -> str:
    """A value in Hydra's grammar, which reads it back as it was. Raises ConfigError."""
    value = _plain(value)
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return value if _for_itself(value) else _quoted(value)
        case list():
            return f"[{','.join(map(written, value))}]"
        case Mapping():
            pairs = (f"{key}:{written(inner)}" for key, inner in value.items())
            return f"{{{','.join(pairs)}}}"
    raise ConfigError(f"{value!r}: no number, text, list or dict of those, or None")


def _for_itself(text: str) -> bool:
    return PLAIN.fullmatch(text) is not None and text.lower() not in SPOKEN_FOR


def _quoted(text: str) -> str:
    """In Hydra's quotes, where a backslash counts only before a quote or at the end."""
    inner = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", inner) + "'"
