"""`lmech verify`: golden numbers beside this machine's."""

from lmech.commands import new_parser


def main(words: list[str]) -> int:
    """Run `lmech verify`; returns the exit code."""
    parser = new_parser(
        "verify",
        "Golden numbers beside this machine's: 64 numbers of a small net whose curvature is known.",
        {"lmech verify": "the table, and how many agree"},
        {1: "a number does not agree"},
    )
    parser.parse_args(words)
    from rich.console import Console
    from rich.table import Table

    from lmech.verifying import TOLERANCE, compare

    rows = compare()
    table = Table("quantity", "golden", "here", "difference")
    for row in rows:
        color = "green" if row.agrees else "red"
        difference = f"[{color}]{row.ours - row.golden:.1e}[/]"
        table.add_row(row.quantity, f"{row.golden:.12g}", f"{row.ours:.12g}", difference)
    Console().print(table)
    wrong = sum(not row.agrees for row in rows)
    print(f"{len(rows) - wrong} of {len(rows)} agree within {TOLERANCE:g} (relative above 1)")
    return int(wrong > 0)
