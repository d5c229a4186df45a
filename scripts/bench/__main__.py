"""What lmech costs, as ratios measured side by side: a Markdown and a JSON file a table.

Peers that no `pip install` puts beside lmech are looked for in --peers (or $LMECH_PEERS):
edge-of-stability/, a checkout of github.com/locuslab/edge-of-stability, and neural-tangents/, an
environment of its own (Python 3.11: pip install jax==0.4.24 jaxlib==0.4.24 neural-tangents
"numpy<2" "scipy<1.13"). The others: pip install torch mup pyhessian hessian-eigenthings
curvlinops-for-pytorch hydra-joblib-launcher. What is not there is skipped, and the table says so.

Each table is a process of its own, and one that fails does not stop the next. Times are comparable
only on a quiet machine; each table says how much of it other processes used.
"""

import argparse
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu" if "gpu" not in sys.argv[1:] else "")

from scripts.bench import TABLES, about, asked, measure, tables

TINY = "**Tiny sizes, to see that it runs: these numbers mean nothing.**"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        epilog="tables:\n" + "\n".join(f"  {name:16} {what}" for name, what in TABLES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="default: all")
    parser.add_argument("--out", type=Path, default=asked.Asked().out, help="(bench-results)")
    parser.add_argument("--repetitions", type=int, default=5, help="paired, at least 1 (5)")
    parser.add_argument("--threads", type=int, help="of both sides (all cores)")
    peers = Path(os.environ.get("LMECH_PEERS", "peers"))
    parser.add_argument("--peers", type=Path, default=peers, help="($LMECH_PEERS or peers)")
    parser.add_argument("--keep", type=Path, help="keep weights and references here between calls")
    parser.add_argument(
        *("--quick", "--dry"), action="store_true", help="tiny sizes, to see that it runs"
    )
    parser.add_argument("--page", action="store_true", help="write TABLE.json files as one page")
    found = parser.parse_args(words)
    unknown = set() if found.page else set(found.tables) - set(TABLES)
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    return found


def options(found: argparse.Namespace) -> list[str]:
    """The command line again, without its tables."""
    given = {name: getattr(found, name) for name in asked.Asked._fields}
    flags = ["--quick"] if given.pop("quick") else []
    return flags + [f"--{name}={value}" for name, value in given.items() if value is not None]


def one(name: str, wanted: asked.Asked) -> int:
    """Measure a table in this process; print it and write its files. 1: some of it failed."""
    started, parts, failed = tables.usage(), [], 0
    try:
        for part in measure(name, wanted):
            parts.append(part)
            print(f"{name}: {part.title}: done", file=sys.stderr, flush=True)
    except asked.Missing as missing:
        parts.append(tables.Table(TABLES[name], (), (), f"skipped: {missing}"))
    except Exception as error:  # what was measured before it is kept
        traceback.print_exc()
        failed = 1
        parts.append(tables.Table(TABLES[name], (), (), f"failed: {type(error).__name__}: {error}"))
    command = " ".join(["python -m scripts.bench", name, *_told(wanted)])
    if wanted.quick:
        parts = [part._replace(targets=(), note=f"{TINY} {part.note}") for part in parts]
    told = tables.document(name, parts, started, tables.usage(), command)
    print("\n".join(tables.markdown(told)))
    print("written: " + ", ".join(map(str, tables.write(told, wanted.out))), flush=True)
    return failed


def _told(wanted: asked.Asked) -> list[str]:
    """What of the command line decides what is measured; folders differ from machine to machine."""
    usual = asked.Asked()
    given = {key: getattr(wanted, key) for key in ("repetitions", "threads")}
    return [f"--{key}={v}" for key, v in given.items() if v != getattr(usual, key)]


def each(names: list[str], words: list[str]) -> int:
    """A process a table; how many failed."""
    failed = []
    for name in names:
        command = [sys.executable, "-m", "scripts.bench", name, *words]
        if subprocess.run(command, check=False).returncode:  # noqa: S603
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def main() -> None:
    """One table here, several in processes of their own, or a page of what was measured."""
    found = arguments()
    if found.page:
        read = [json.loads(Path(file).read_text(encoding="utf-8")) for file in found.tables]
        print(tables.page(read, {name: about(name) for name in TABLES}), end="")
    elif len(found.tables) == 1:
        given = {name: getattr(found, name) for name in asked.Asked._fields}
        paths = {name: given[name] and given[name].absolute() for name in ("out", "peers", "keep")}
        raise SystemExit(one(found.tables[0], asked.Asked(**{**given, **paths})))
    else:
        raise SystemExit(min(1, each(found.tables or list(TABLES), options(found))))


if __name__ == "__main__":
    main()
