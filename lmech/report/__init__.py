"""Sweeps as HTML: setting, figure, claims, curves, jobs, provenance; one file that opens offline.

The page that a sweep leaves, ``lmech report`` and ``lmech atlas`` are one template and one code.
What comes from a user (titles, keys, errors, claims) is text, escaped by the template, and inside a
script JSON without a ``<``.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from lmech import formats, manifest, standing
from lmech.disk import read_json, read_json_lines, write_text
from lmech.report import curves, setting
from lmech.values import ConfigError

INCH = 7.2
"""An inch of a figure in the page's units (of its letters' size), where there is room."""


class Section(NamedTuple):
    """What is told of a sweep beyond its files."""

    folder: Path
    name: str
    """The experiment's, or the sweep's."""
    headline: str
    paper: str
    command: str
    scale: str
    """Of an experiment."""
    figure: Figure | None
    claims: Sequence[dict[str, Any]]
    notes: Sequence[str] = ()
    """What a reader must know who would take the rest for granted."""


def write(path: Path, sections: Sequence[Section], interactive: bool = True) -> Path:
    """One self-contained file about these sweeps. Nothing is loaded from anywhere.

    ``interactive``: with curves to read values from, for which the file carries plotly.js (5 MB).
    Raises ConfigError where that is not installed.
    """
    shown = views(sections, interactive)
    script = plotly().read_text(encoding="utf-8") if interactive else ""
    html = render("report.html.j2", views=shown, plotly=_in_script(script), home="", source="")
    write_text(path, html)
    return path


def views(sections: Sequence[Section], interactive: bool = True) -> list[dict[str, Any]]:
    """What the template shows of a page's sections."""
    told = [_view(section, jobs_of(section.folder)) for section in sections]
    if interactive:
        _add_curves(told)
    return told


def plotly() -> Path:
    """plotly.js, which the Python package ships; nothing is imported. Raises ConfigError."""
    found = find_spec("plotly")
    file = Path(found.origin or "").parent / "package_data" / "plotly.min.js" if found else None
    if file is None or not file.is_file():
        raise ConfigError("curves need plotly's JavaScript: pip install plotly")
    return file


def _in_script(source: str) -> Markup:
    """JavaScript that ends no ``<script>`` but its own."""
    return Markup(re.sub(r"</(?=script)", r"<\\/", source, flags=re.IGNORECASE))  # noqa: S704


def as_json(value: Any) -> Markup:
    """JSON for a ``<script>``: no text of a user's can end it, or begin a comment in it."""
    dumped = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(dumped.replace("<", "\\u003c"))  # noqa: S704


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lmech"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        function.__name__: function
        for function in (
            *(formats.number, formats.interval, formats.spread, formats.mark),
            *(setting.several, as_json),
        )
    }
    return environment


def render(template: str, **about: Any) -> str:
    """A page, with the style and the script that all have."""
    environment = _environment()

    def own(name: str) -> Markup:
        """A file of ours beside the templates, as it is."""
        return Markup(environment.loader.get_source(environment, name)[0])  # type: ignore[union-attr]  # noqa: S704

    page = environment.get_template(template)
    return page.render(style=own("report.css"), script=own("report.js"), **about)


class Job(NamedTuple):
    """A line of the manifest and what came of it."""

    id: str
    overrides: dict[str, Any]
    config: dict[str, Any]
    execution: dict[str, Any]
    folder: Path
    result: dict[str, Any]
    """Empty where it has not run."""
    error: str
    """Why it failed, when it did."""


def jobs_of(folder: Path) -> list[Job]:
    """A sweep's jobs, in the manifest's order."""
    return [_job(folder / entry["id"], entry) for entry in read_json_lines(folder / manifest.NAME)]


def _job(folder: Path, entry: Mapping[str, Any]) -> Job:
    result = folder / "result.json"
    return Job(
        id=entry["id"],
        overrides=entry["overrides"],
        config=entry.get("config", {}),
        execution=entry.get("execution", {}),
        folder=folder,
        result=read_json(result) if result.is_file() else {},
        error=standing.reason(folder) if (folder / "error.txt").is_file() else "",
    )


def _view(section: Section, jobs: Sequence[Job]) -> dict[str, Any]:
    """What the template shows of a section."""
    summary = section.folder / "summary.json"
    told = read_json(summary) if summary.is_file() else {}
    record = told.get("provenance") or next((j.execution for j in jobs if j.execution), {})
    configs = [job.config for job in jobs if job.config]
    key = re.sub(r"[^A-Za-z0-9]+", "-", f"{section.name}-{section.folder.name}")
    return {
        **section._asdict(),
        "key": key,
        "figure": Markup() if section.figure is None else _svg(section.figure, key),
        "width": 0 if section.figure is None else round(INCH * section.figure.get_figwidth()),
        "counts": counts(section.claims),
        "setting": setting.rows(configs),
        "common": setting.common(configs),
        "table": _table(jobs),
        "warnings": [*section.notes, *_warnings(jobs, record)],
        "summary": told,
        "provenance": _flat(record),
        "jobs": jobs,
        "curves": None,
    }


def counts(claims: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many claims came out as expected, how many not, and open ones."""
    return dict(Counter(map(formats.mark, claims)))


def _svg(figure: Figure, key: str) -> Markup:
    """Inline SVG with text as paths: looks the same everywhere, and the same bytes every time.

    Its ids begin with ``key``, so that several fit in a page.
    """
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "lmech"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg).replace("url(#", f"url(#{key}-")
    return Markup(svg)  # noqa: S704 our own figure


def _table(jobs: Sequence[Job]) -> dict[str, Any]:
    """Heads and rows: id, the swept keys that differ, how it ended, each column's last value."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    swept = [key for key in keys if len(setting.distinct(j.overrides.get(key) for j in jobs)) > 1]
    last: list[dict[str, Any]] = [job.result.get("final", {}) for job in jobs]
    names = sorted({name for one in last for name, value in one.items() if _is_number(value)})
    rows = [
        {
            "job": job.id,
            "ended": job.result.get("status", "not run"),
            "cells": [
                *(job.overrides.get(key) for key in swept),
                job.result.get("status", "not run"),
                job.result.get("steps"),
                *(final.get(name) for name in names),
            ],
        }
        for job, final in zip(jobs, last, strict=True)
    ]
    return {
        "heads": [*swept, "status", "ended at", *names],
        "swept": len(swept),
        "rows": rows,
        "keys": swept,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warnings(jobs: Sequence[Job], record: Mapping[str, Any]) -> list[str]:
    """What keeps a number from being what it looks like."""
    states = Counter(job.result.get("status", "not run") for job in jobs)
    told = [f"{states['diverged']} of {len(jobs)} jobs diverged"] * bool(states["diverged"])
    told += [f"{states['not run']} of {len(jobs)} jobs have not run"] * bool(states["not run"])
    told += [f"job {job.id} failed: {job.error}" for job in jobs if job.error]
    told += [_resumed(job) for job in jobs if job.result.get("provenance", {}).get("resumed")]
    if record.get("dirty"):
        told.append(f"the sources differed from commit {record.get('commit')}: it was not clean")
    if record.get("project", {}).get("dirty"):
        told.append(f"the project's sources differed from commit {record['project']['commit']}")
    kinds = [job.result["provenance"] for job in jobs if job.result.get("provenance")]
    for key in ("commit", "packages", "device", "platform"):
        found = setting.distinct(kind.get(key) for kind in kinds)
        if len(found) > 1:
            told.append(f"jobs of different {key}: {setting.several(found)}")
    return told


def _resumed(job: Job) -> str:
    resumed = job.result["provenance"]["resumed"]
    changed = ", ".join(resumed.get("changed", {}))
    return f"job {job.id} was resumed from step {resumed.get('step')} with another {changed}"


def _flat(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    leaves = setting.leaves({k: v for k, v in record.items() if k not in ("packages", "project")})
    told = [(key, setting.text(value)) for key, value in leaves.items() if value not in ("", None)]
    for key in ("packages", "project"):
        inner = record.get(key) or {}
        told += [(key, ", ".join(f"{k} {setting.text(v)}" for k, v in inner.items()))] * bool(inner)
    return told


def _add_curves(views: Sequence[dict[str, Any]]) -> None:
    """The curves of a page's sections, within what one page has room for."""
    known = [(view, _metrics(view["jobs"])) for view in views]
    names = [curves.columns(next(iter(files.values()))) for _, files in known if files]
    total = sum(len(files) for _, files in known)
    for view, files in known:
        if not files:
            continue
        room = curves.share(total, max(names))
        own = room._replace(jobs=max(room.jobs * len(files) // total, 1))
        swept = view["table"]["keys"]
        keys = {job.id: {key: job.overrides.get(key) for key in swept} for job in view["jobs"]}
        view["curves"] = curves.payload(files, keys, own)


def _metrics(jobs: Sequence[Job]) -> dict[str, Path]:
    """Id → the table of each job that has one."""
    files = {job.id: job.folder / "metrics.parquet" for job in jobs}
    return {job: file for job, file in files.items() if file.is_file()}
