"""`lmech collect`: results as one table."""

from pathlib import Path

from lmech.commands import new_parser, parse_steps
from lmech.values import ConfigError


def main(words: list[str]) -> int:
    """Run `lmech collect`; returns the exit code."""
    parser = new_parser(
        "collect",
        "Results as one table, one row a run and step.",
        {
            "lmech collect outputs --to all.parquet": "every recorded number",
            "lmech collect outputs/run --columns train_loss --steps last": "the last losses",
        },
    )
    parser.add_argument("folder", type=Path, help="a sweep's, or one above: all below it")
    parser.add_argument("--columns", help="observables, A,B (default: all); the rest is not read")
    parser.add_argument(
        "--steps", help="last (each run's last row), 0,100 or FIRST:END:STRIDE (default: all)"
    )
    parser.add_argument("--to", type=Path, help="FILE.parquet or FILE.csv (default: print a part)")
    options = parser.parse_args(words)
    from lmech import collecting

    writers = {".parquet": collecting.write_parquet, ".csv": collecting.write_csv}
    if options.to and options.to.suffix not in writers:
        raise ConfigError(f"--to {options.to}: write a file that ends in {' or '.join(writers)}")
    columns = options.columns.split(",") if options.columns else None
    frame = collecting.collect(options.folder, columns, parse_steps(options.steps))
    if options.to is None:
        print(frame)
        return 0
    writers[options.to.suffix](frame, options.to)
    print(f"{len(frame)} rows: {options.to}")
    return 0
