"""The house's own rules, read off the sources: nothing of lmech is imported here."""

import ast
import re
import runpy
import tomllib
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
HOUSE = runpy.run_path(str(ROOT / "scripts" / "house.py"))
PACKAGE, EXPERIMENTS, SCRIPTS = map(HOUSE["sources"], ("lmech", "experiments", "scripts"))
FILES = PACKAGE | EXPERIMENTS
TREES = {path: ast.parse(text) for path, text in (FILES | SCRIPTS).items()}
PRESETS = {
    str(path.relative_to(ROOT)): yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "conf").rglob("*.yaml"))
}
DOCS = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
)
# Hydra looks for what is in there; pickle, Hydra, argparse and notebooks call these methods.
PLUGINS = "lmech/plugins/hydra_plugins/lmech/__init__.py"
CALLED = {"find_class", "manipulate_search_path", "_fill_text"}
CALLED |= {"_render_traceback_", "_repr_html_", "_repr_png_"}


def module_of(path):
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name if name.startswith("lmech") else f"lmech.{name}"


def calls(node):
    """Every mapping with a ``_target_``, at any depth."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    own = [node] if isinstance(node, dict) and "_target_" in node else []
    return own + [found for item in inner for found in calls(item)]


def leaves(node, path=""):
    if not isinstance(node, dict) or not node:
        return {path}
    return {leaf for key in node for leaf in leaves(node[key], f"{path}.{key}".lstrip("."))}


def identifiers(tree):
    """How often each word is used: as a name, an attribute, a keyword, a text."""
    return Counter(word for node in ast.walk(tree) for word in words(node))


def words(node):
    match node:
        case ast.Name(id=word, ctx=ast.Load()) | ast.Attribute(attr=word, ctx=ast.Load()):
            return [word]
        case ast.keyword(arg=str(word)):
            return [word]
        case ast.Constant(value=str(text)):
            return [text] if text.isidentifier() else []
        case ast.MatchClass(kwd_attrs=attributes):
            return attributes
    return []


TARGETS = {call["_target_"] for preset in PRESETS.values() for call in calls(preset)}
OURS = {
    f"{module_of(path)}.{node.name}": node
    for path in FILES
    for node in TREES[path].body
    if isinstance(node, ast.FunctionDef)
}


def parameters(function):
    return {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}


# Size


def test_functions_fit_in_a_glance():
    counts = HOUSE["lengths"](FILES)
    assert HOUSE["statistics"].median(counts.values()) <= 10
    assert {name: count for name, count in counts.items() if count > 60} == {}


def test_a_functions_lines_are_counted_without_its_docstring():
    text = 'def f(x):\n    """One.\n\n    Two.\n    """\n    # why\n    return x\n'
    assert HOUSE["lengths"]({"f.py": text}) == {"f.py:1 f": 3}


def test_modules_stay_below_500_lines():
    assert {path for path, text in FILES.items() if len(text.splitlines()) > 500} == set()


# Rooms


def layers():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts = {contract["id"]: contract for contract in settings["importlinter"]["contracts"]}
    return [set(re.findall(r"\w+", layer)) for layer in contracts["floors"]["layers"]]


def test_the_floors_in_the_docs_are_those_that_are_checked():
    table = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## The floors")[2]
    rows = [line.split("|")[2] for line in table.splitlines() if re.match(r"\| \d ", line)]
    told = [set(re.findall(r"`(\w+)/?`", row)) for row in rows]
    checked = [floor - {"__main__"} for floor in layers()]
    assert told == checked
    picture = (ROOT / "docs" / "figures" / "floors.svg").read_text(encoding="utf-8")
    assert set.union(*checked) <= set(re.findall(r"\w+", picture))


def test_no_experiment_is_imported_by_its_other_name():
    # The contracts know `experiments.x` and would not see `lmech.experiments.x`.
    imported = {
        (path, f"{getattr(node, 'module', '')}.{alias.name}".lstrip("."))
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {place for place in imported if place[1].startswith("lmech.experiments")} == set()
    assert ("lmech/member.py", "lmech.seeds") in imported


# Keys


def keys():
    """The keys of ``values.KEYS``."""
    (table,) = (
        node.value
        for node in TREES["lmech/values.py"].body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "KEYS"
    )
    return {ast.literal_eval(key) for key in table.keys}


def test_the_primary_config_has_the_keys_that_there_are_and_no_other():
    config = PRESETS["conf/config.yaml"]
    sections = ("defaults", "hydra", "observables", "logger", "rate_unit", "sweep", "experiment")
    assert (
        leaves({k: v for k, v in config.items() if k not in sections})
        | {f"precision.{leaf}" for leaf in leaves(PRESETS["conf/precision/float32.yaml"])}
        == keys()
    )


def test_every_key_is_read_somewhere():
    read = Counter()
    for path in PACKAGE.keys() - {"lmech/values.py"}:
        read += identifiers(TREES[path])
        read += Counter(n.target.id for n in ast.walk(TREES[path]) if is_field(n))
    assert {key for key in keys() if not read[key.rpartition(".")[2]]} == set()


def is_field(node):
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def test_presets_name_parameters_and_every_parameter_is_named_and_used():
    named = {}
    for preset in PRESETS.values():
        for call in calls(preset):
            named.setdefault(call["_target_"], set()).update(call.keys() - {"_target_"})
    for target in TARGETS & OURS.keys():
        taken = parameters(OURS[target])
        assert named[target] - {"every", "between", "steps"} <= taken, target
        assert taken - {"outputs"} <= named[target], target  # outputs: the dataset says
        used = {word for node in OURS[target].body for word in identifiers(node)}
        assert taken <= used, target


def test_every_preset_of_ours_names_a_function_that_there_is():
    ours = {target for target in TARGETS if target.startswith("lmech.")}
    assert ours - OURS.keys() == set()
    assert len(ours) > 50


# Dead code


def definitions(path):
    """Functions, classes, methods, constants and fields, with the node of each."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((n.target.id, n) for n in node.body if is_field(n))
    for node in TREES[path].body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))


def said(node):
    """The keys and dotted names of a preset; sentences are none."""
    if isinstance(node, dict | list):
        keys = map(str, node) if isinstance(node, dict) else ()
        values = node.values() if isinstance(node, dict) else node
        return [*keys, *(word for value in values for word in said(value))]
    return node.split(".") if isinstance(node, str) and re.fullmatch(r"[\w.]+", node) else []


def test_the_docs_follow_values_through_functions_that_there_are():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = text.partition("## Three values on their way")[2].partition("## ")[0]
    told = re.findall(r"`([\w.]+\.\w+)`", section.replace("`metrics.parquet`", ""))
    defined = {name for path in FILES for name, _ in definitions(path)}
    assert {name for name in told if name.rpartition(".")[2] not in defined} == set()
    assert len(told) > 20


def documented(path):
    """Whether the docs or the README tell users of the module."""
    return re.search(rf"\b{re.escape(module_of(path))}\b(?!\.)", DOCS) is not None


def test_nothing_is_defined_that_nobody_uses():
    everywhere = sum(map(identifiers, TREES.values()), Counter())
    everywhere += Counter(word for preset in PRESETS.values() for word in said(preset))
    everywhere += Counter(re.findall(r"`lmech\.[\w.]*?(\w+)`", DOCS))
    dead = {
        f"{path}: {name}"
        for path in FILES.keys() - {PLUGINS}
        if not documented(path)
        for name, node in definitions(path)
        if not name.startswith("__") and everywhere[name] == identifiers(node)[name]
    }
    assert {place for place in dead if place.rpartition(" ")[2] not in CALLED} == set()
