"""Make docs/gallery.md of what the experiments' own pages say: ``python scripts/gallery.py``.

Headline and paper are those of `lmech list experiments`. The figure and the verdicts are those of
the experiment's README, whose tables of claims end in a column ``verdict (expected)``.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lmech import catalogue

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
HEADING = "verdict (expected)"
VERDICT = re.compile(r"(hold|fail)s?\s*\((hold|fail|open)")
FIGURE = re.compile(r"!\[([^]]*)\]\(\.\./\.\./docs/(figures/[\w.]+)\)")
KINDS = ("as expected", "not", "open")
OPENING = """# Gallery

Every experiment, with what it shows, its figure and how its claims were judged. *As expected* are
claims that hold and negative controls that fail; *not* are claims that were written down before the
run and came out otherwise; *open* ones are questions. `lmech reproduce NAME` makes figure and
verdicts anew, and `lmech list experiment NAME` prints the claims.

This page is made from the experiments' own pages by `python scripts/gallery.py`; a test compares
the two.
"""


class Line(NamedTuple):
    """A row of a table of claims; ``verdict`` and ``expected`` without their endings."""

    scale: str
    claim: str
    measured: str
    interval: str
    verdict: str
    expected: str

    @property
    def kind(self) -> str:
        """How it counts, one of ``KINDS``."""
        if self.expected == "open":
            return "open"
        return "as expected" if self.verdict == self.expected else "not"


def cells(row: str) -> list[str]:
    r"""The texts of a table's row; ``\|`` is no border."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def lines(readme: str, name: str) -> list[Line]:
    """The claims of an experiment's README, in its order.

    Their scale is the one that their section's heading or command names.
    """
    found: list[Line] = []
    scale, judged = "default", False
    named = re.compile(rf"(?:## .*|    lmech reproduce {name} .*)--scale (\w+)")
    for row in readme.splitlines():
        told = named.match(row)
        if told or row.startswith("## "):
            scale = told[1] if told else "default"
        texts = cells(row) if row.startswith("|") else [""]
        judged = texts != [""] and (judged or texts[-1] == HEADING)
        verdict = VERDICT.match(texts[-1].replace("*", "")) if judged else None
        if verdict:
            claim, measured, interval = (text.replace("**", "") for text in texts[:3])
            found.append(Line(scale, claim, measured, interval, verdict[1], verdict[2]))
    return found


def standing(found: list[Line]) -> list[str]:
    """A line for each scale, and one for each claim that did not come out as expected."""
    told = []
    for scale in dict.fromkeys(line.scale for line in found):
        own = [line for line in found if line.scale == scale]
        counts = Counter(line.kind for line in own)
        counted = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        told.append(f"- {'Default' if scale == 'default' else f'`--scale {scale}`'}: {counted}.")
        told += [
            f"  - Not as expected: {one.claim}. Measured {one.measured}, interval {one.interval}."
            for one in own
            if one.kind == "not"
        ]
    return told


def entry(name: str) -> str:
    """An experiment's part of the page. Raises ValueError for a README without figure or claims."""
    page = f"experiments/{name}/README.md"
    readme = (ROOT / page).read_text(encoding="utf-8")
    found, figure = lines(readme, name), FIGURE.search(readme)
    if figure is None or not found:
        raise ValueError(f"{page}: no figure of docs/figures, or no table | … | {HEADING} |")
    told = catalogue.experiment(name, {})
    parts = [
        f"## {name}",
        told.headline,
        f"![{figure[1]}]({figure[2]})",
        "\n".join(standing(found)),
        f"{told.paper}. [Setting, claims and what does not hold](../{page}).",
    ]
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The whole page, in the order of the experiments' names."""
    return "\n".join([OPENING, *map(entry, catalogue.groups()["experiment"])])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
