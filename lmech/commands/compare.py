"""`lmech compare`: measure pairs of finished runs, from the weights that they kept."""

from pathlib import Path

from lmech.commands import new_parser


def main(words: list[str]) -> int:
    """Run `lmech compare`; returns the exit code."""
    parser = new_parser(
        "compare",
        "Measure every two finished runs of a sweep that differ in one key, from the weights that "
        "they kept. Writes a table; trains nothing, and compares no pair again.",
        {
            "lmech compare outputs comparison=linear_path": (
                "barriers between the seeds of each setting, units matched"
            ),
            "lmech compare outputs comparison=linear_path comparison.align=none": "as trained",
        },
        {1: "no two runs make a pair"},
    )
    parser.add_argument("folder", type=Path, help="a sweep's, or one above: all below it")
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="comparison=NAME of `lmech list comparisons`, then comparison.KEY=VALUE",
    )
    options = parser.parse_intermixed_args(words)
    from lmech import collecting, config, manifest, pairs, reproducing

    name, node = config.comparison(options.overrides)
    (asked,) = pairs.parse({name: node})
    there = 0
    for sweep in collecting.sweeps(options.folder):
        new = reproducing.compare(sweep, [asked])
        total = len(pairs.wanted(sweep, manifest.read(sweep), asked))
        there += total
        print(f"{sweep}: {new} pairs compared, {total - new} were; {pairs.table(sweep, name)}")
    return int(not there)
