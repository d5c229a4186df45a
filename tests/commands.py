"""Commands and blocks of code as the documentation shows them, and how a test runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:^`([\w./]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: the file that it is (None: it is to be run), its language, its text."""

    file: str | None
    language: str
    text: str


def blocks(page):
    """The fenced blocks of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [Block(file or None, *rest) for file, *rest in BLOCK.findall(text)]
    assert len(found) == text.count("```") / 2
    return found


def indented(page):
    """The command lines of a page's indented blocks, without what is said beside them."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4}((?:lmech|make|pip|python|wandb|eval) .*)$", text, re.M)
    return [re.split(r" {2,}(?=[^ '])|\s+# ", line)[0].strip() for line in lines]


def shell(script, folder, **variables):
    """Run a script of the documentation in a folder; `lmech` is this checkout's."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    (tools / "lmech").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lmech "$@"\n')
    (tools / "lmech").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    return subprocess.run(
        ["bash", "-e", "-u", "-c", script],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
