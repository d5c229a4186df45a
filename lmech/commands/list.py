"""`lmech list`: what there is to choose from."""

from lmech import config, hints, project
from lmech.commands import new_parser
from lmech.values import ConfigError


def main(words: list[str]) -> int:
    """Run `lmech list`; returns the exit code."""
    parser = new_parser("list", "What there is to choose from.")
    parser.add_argument("what", nargs="?", help="a config group, or `keys`")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="whose keys: of the default, or of these"
    )
    options = parser.parse_args(words)
    what = options.what
    if what == "keys":
        for key, value in config.keys(config.compose(options.overrides)).items():
            print(f"{key}={'null' if value is None else value}")
        return 0
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]} goes with `lmech list keys`")
    groups, own = config.groups(), project.current()
    if what is not None and what not in groups:
        hint = hints.nearest(what, [*groups, "keys"])
        raise ConfigError(f"no group '{what}'{hint} (groups: {', '.join(groups)}; or keys)")
    for group in [what] if what else groups:
        print(group)
        for option in groups[group]:
            mark = "*" if config.of_project(group, option) else " "
            print(f"{mark} {option:20} {config.describe(group, option)}")
    if own is not None:
        print(f"* of the project {own.root.name}: {own.conf}")
    return 0
