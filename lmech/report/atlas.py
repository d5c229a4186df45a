"""Many sweeps as a folder of pages that opens from the disk: a gallery, and a page a name."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lmech import manifest, report
from lmech.disk import atomically, write_text
from lmech.report import Section

THUMBNAIL = 640
"""Pixels across a figure in the gallery."""


def write(site: Path, sweeps: Sequence[Path], drawn: Callable[[Path], Section]) -> list[Section]:
    """``index.html``, ``experiments/<name>.html``, ``figures/<name>.png`` and plotly.js, once.

    Sweeps of one name, as an experiment's at several scales, share a page, the latest first.
    ``drawn`` makes a sweep's section; one page's figures at a time are in memory. Returns the
    sections without them. Raises ConfigError where plotly's JavaScript is missing.
    """
    script = report.plotly()
    atomically(site / script.name, lambda temporary: shutil.copyfile(script, temporary))
    cards, told = [], []
    for name, place, folders in _pages(sweeps):
        sections = [drawn(folder) for folder in folders]
        views = report.views(sections)
        about = {"plotly": "", "home": "../index.html", "source": f"../{script.name}"}
        page = report.render("report.html.j2", views=views, **about)
        write_text(site / "experiments" / f"{place}.html", page)
        shown = _thumbnail(sections[0], site / "figures" / f"{place}.png")
        lines = [{**view, "figure": "", "curves": None, "table": {}} for view in views]
        cards.append({"name": name, "place": place, "figure": shown, "views": lines})
        told += [section._replace(figure=None) for section in sections]
    write_text(site / "index.html", report.render("atlas.html.j2", cards=cards))
    return told


def _pages(sweeps: Sequence[Path]) -> list[tuple[str, str, list[Path]]]:
    """Name, what its files are called (letters, digits and dashes, each once), its sweeps."""
    named: dict[str, list[Path]] = {}
    for folder in sorted(sweeps, key=_age):
        named.setdefault(folder.resolve().parent.name, []).append(folder)
    places: list[str] = []
    for name in sorted(named):
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", name)
        tries = (plain, *(f"{plain}-{number}" for number in range(2, len(named) + 2)))
        taken = {place.lower() for place in places}  # as some file systems compare
        places.append(next(one for one in tries if one.lower() not in taken))
    return [(name, place, named[name]) for name, place in zip(sorted(named), places, strict=True)]


def _age(sweep: Path) -> float:
    """Older is more: of its last end, or where it has none of its manifest."""
    ended = sweep / "summary.json"
    return -(ended if ended.is_file() else sweep / manifest.NAME).stat().st_mtime


def _thumbnail(section: Section, path: Path) -> bool:
    """The section's figure, small; whether there is one."""
    figure = section.figure
    path.unlink(missing_ok=True)
    if figure is None:
        return False
    dpi = THUMBNAIL / figure.get_figwidth()
    atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi))
    return True
