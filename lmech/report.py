"""One self-contained HTML file a sweep: figure, claims, jobs, provenance."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from lmech import collecting, formats
from lmech.disk import atomically


def _svg(figure: Figure) -> Markup:
    """Inline SVG with text as paths: looks the same everywhere, and the same bytes every time."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "lmech"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])  # noqa: S704 our own figure


def write(
    folder: Path,
    title: str,
    paper: str,
    command: str,
    figure: Figure,
    claims: Sequence[dict[str, Any]],
    finals: Mapping[str, Mapping[str, Any]],
) -> Path:
    """``report.html`` of a sweep folder. Opens offline: nothing is loaded from anywhere.

    ``finals``: job id → the last recorded value of each column.
    """
    environment = Environment(
        loader=PackageLoader("lmech"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        function.__name__: function
        for function in (formats.number, formats.interval, formats.spread, formats.mark)
    }
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    html = environment.get_template("report.html.j2").render(
        title=title,
        paper=paper,
        command=command,
        figure=_svg(figure),
        claims=claims,
        jobs=collecting.read_jobs(folder).to_dict("records"),
        finals=finals,
        summary=summary,
    )
    path = folder / "report.html"
    atomically(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    return path
