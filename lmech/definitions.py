"""What a ``_target_`` is, as its source says it: docstring, parameters, types. No import of it.

Most of these modules import JAX: seconds, for a line about a model. Aliases of types are followed
where the text alone says what they are; what it does not say is left as it is written there.
"""

import ast
import inspect
import re
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from lmech import paths


class Kind(NamedTuple):
    """What a value may be."""

    text: str
    """``int ≥ 1``, ``tanh | relu``; "" where nothing is said."""
    choices: tuple[str, ...]
    """The words among it."""


class Parameter(NamedTuple):
    """One of a function's."""

    kind: Kind
    default: str | None
    """As it is written; None where a value must be given."""
    told: str
    """What the docstring says of it (``Args:``), its first sentence."""


class Definition(NamedTuple):
    """A function or class."""

    file: Path
    line: int
    doc: str
    parameters: dict[str, Parameter]


class _Module(NamedTuple):
    name: str
    file: Path
    tree: ast.Module


Place = tuple[ast.AST, _Module]
Function = ast.FunctionDef | ast.ClassDef
ANYTHING = Kind("", ())


def find(target: str) -> Definition | None:
    """The definition of a dotted name; None where the sources do not say."""
    module, _, name = target.rpartition(".")
    place = _look_up(module, name)
    if place is None or not isinstance(place[0], Function):
        return None
    node, found = place[0], place[1]
    doc = inspect.cleandoc(ast.get_docstring(node) or "")
    told = _arguments(doc)
    parameters = {
        argument.arg: Parameter(
            kind(argument.annotation, found),
            None if default is None else ast.unparse(default),
            told.get(argument.arg, ""),
        )
        for argument, default in _signature(node)
    }
    return Definition(found.file, node.lineno, doc, parameters)


def docstring(module: str) -> str:
    """A module's docstring; "" where it has none or is not found."""
    found = _module(module)
    return "" if found is None else ast.get_docstring(found.tree) or ""


def first_line(doc: str) -> str:
    """What a docstring begins with."""
    return (doc.strip().splitlines() or [""])[0]


def kinds(module: str, table: str) -> dict[str, Kind]:
    """The kinds of a module's table of types, as of ``values.KEYS``."""
    place = _look_up(module, table)
    if place is None or not isinstance(place[0], ast.Dict):
        return {}
    pairs = zip(place[0].keys, place[0].values, strict=True)
    return {
        str(key.value): kind(node, place[1]) for key, node in pairs if isinstance(key, ast.Constant)
    }


def _signature(node: Function) -> list[tuple[ast.arg, ast.expr | None]]:
    """A function's parameters, or the fields of a class, each with its default."""
    if isinstance(node, ast.ClassDef):
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        return [
            (ast.arg(field.target.id, field.annotation), field.value)
            for field in fields
            if isinstance(field.target, ast.Name)
        ]
    plain = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(plain) - len(node.args.defaults)) + [*node.args.defaults]
    pairs = [*zip(plain, defaults, strict=True)]
    return [*pairs, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]


def _arguments(doc: str) -> dict[str, str]:
    """The first sentence about each parameter, of a docstring in Google's style."""
    section = re.split(r"^(?:Args|Arguments):\n", doc, maxsplit=1, flags=re.M)[1:]
    body = re.split(r"^\S", section[0], maxsplit=1, flags=re.M)[0] if section else ""
    entry = r"^( +)(\w+)(?: \(.*?\))?:((?:.*\n?)(?:^\1 +.*\n?)*)"
    told = {name: " ".join(text.split()) for _, name, text in re.findall(entry, body, re.M)}
    return {name: re.split(r"(?<=[\w)`])\.(?: |$)", text)[0] for name, text in told.items()}


# ------------------------------------------------------------------ where things are


@cache
def _module(name: str) -> _Module | None:
    """A module's source, found as Python would, with no package imported on the way."""
    root, *rest = name.split(".")
    folders = [str(paths.package()), str(paths.conf().parent)]
    if root != "lmech" or not rest:
        spec = PathFinder.find_spec(root)
        if spec is None:
            return None
        if not rest:
            return _parsed(name, Path(spec.origin or ""))
        folders = list(spec.submodule_search_locations or [])
    *packages, last = rest
    for folder in folders:
        base = Path(folder).joinpath(*packages)
        for file in (base / f"{last}.py", base / last / "__init__.py"):
            if file.is_file():
                return _parsed(name, file)
    return None


def _parsed(name: str, file: Path) -> _Module | None:
    try:
        return _Module(name, file, ast.parse(file.read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return None


def _look_up(module: str, name: str, depth: int = 5) -> Place | None:
    """What a module's name stands for, through imports by ``from … import``."""
    found = _module(module)
    if found is None or not depth:
        return None
    for node in found.tree.body:
        match node:
            case ast.FunctionDef(name=own) | ast.ClassDef(name=own) if own == name:
                return node, found
            case ast.Assign(targets=[ast.Name(id=own)], value=value) if own == name:
                return value, found
            case ast.AnnAssign(target=ast.Name(id=own), value=ast.expr() as value) if own == name:
                return value, found
            case ast.ImportFrom(names=names):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return _look_up(_absolute(node, found), alias.name, depth - 1)
    return None


def _absolute(node: ast.ImportFrom, within: _Module) -> str:
    """The module that ``from … import`` names."""
    if not node.level:
        return node.module or ""
    parts = within.name.split(".")
    package = parts if within.file.name == "__init__.py" else parts[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


# ------------------------------------------------------------------ types as text

LIMITS = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
PLAIN = {"FiniteFloat": "float", "None": "null", "Any": "", "Optional[Any]": ""}


def kind(node: ast.AST | None, within: _Module) -> Kind:
    """An annotation as text, its aliases followed."""
    match node:
        case None:
            return ANYTHING
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _either([kind(left, within), kind(right, within)])
        case ast.Subscript(value=ast.Name(id=name), slice=inner):
            return _subscripted(name, inner, within) or _named(ast.unparse(node))
        case ast.Name(id=name):
            place = _look_up(within.name, name)
            alias = place and isinstance(place[0], ast.Subscript | ast.BinOp)
            return kind(*place) if place and alias else _named(name)
    return _named(ast.unparse(node))


def _subscripted(name: str, inner: ast.expr, within: _Module) -> Kind | None:
    """``Literal[…]``, ``Annotated[…]``, ``list[…]``; None for others."""
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        texts = tuple(str(ast.literal_eval(part)) for part in parts)
        return Kind(" | ".join(texts), texts)
    if name == "Annotated":
        text, choices = kind(parts[0], within)
        return Kind(" ".join([text, *filter(None, map(_limit, parts[1:]))]), choices)
    return Kind(f"{name} of {kind(inner, within).text}", ()) if name in ("list", "tuple") else None


def _named(text: str) -> Kind:
    choices = ("true", "false") if text == "bool" else ("null",) * (text == "None")
    return Kind(PLAIN.get(text, text), choices)


def _either(options: list[Kind]) -> Kind:
    texts = [option.text for option in options if option.text]
    return Kind(" | ".join(texts), tuple(word for option in options for word in option.choices))


def _limit(node: ast.expr) -> str:
    """``≥ 1``, ``in [0, 1)``; "" for what has no such words."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[bound]) if name in LIMITS:
            return f"{LIMITS[name]} {ast.unparse(bound)}"
        case ast.Call(func=ast.Name(id="Interval"), keywords=bounds):
            at = {bound.arg: ast.unparse(bound.value) for bound in bounds}
            low = f"[{at['ge']}" if "ge" in at else f"({at.get('gt', '−∞')}"
            high = f"{at['le']}]" if "le" in at else f"{at.get('lt', '∞')})"
            return f"in {low}, {high}".replace(" ** ", "**")
    return ""
