"""What a ``_target_`` takes and where it is defined, remembered so that a check imports no JAX.

To read a signature its module must be imported, and most import JAX: seconds, for a typo. So what
was read is kept in the user's cache folder and used while nothing that it depends on has changed.
Whatever is doubtful is imported.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import logging
import os
import pickle
import pkgutil
import re
import sys
import typing
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Interval
from hydra.utils import get_method
from pydantic import FiniteFloat

from lmech import paths
from lmech.disk import atomically
from lmech.hints import nearest
from lmech.paths import OURS

STAMPED = ("lmech", "optax", "flax")  # whose files are looked at; of the others, the versions
DISTRIBUTIONS = ("annotated-types", "flax", "jax", "numpy", "optax", "pydantic", "pydantic-core")

Rate = Annotated[FiniteFloat, Ge(0)]
Fraction = Annotated[FiniteFloat, Interval(ge=0, lt=1)]

# What the hyper-parameters of anyone's optimizer may be, by the names that optax gives them.
RANGES: dict[str, Any] = {
    "learning_rate": Rate,
    "weight_decay": Rate,
    "eps": Rate,
    "momentum": Fraction | None,
    "decay": Fraction,
    "beta": Fraction,
    "b1": Fraction,
    "b2": Fraction,
    "adam_b1": Fraction,
    "adam_b2": Fraction,
}


class Signature(NamedTuple):
    """What a ``_target_`` takes."""

    kinds: dict[str, Any]
    """Parameter → the type that its values must have."""
    source: str | None
    """The file that defines a user's target; None for ours or a library's."""


def signature(target: str, by_name: bool) -> Signature:
    """The target's signature, from the memo if that is valid, else by importing it.

    ``by_name`` is for optimizers, which are other people's (see ``kind``). Elsewhere a parameter's
    kind is its annotation. Raises what the import raises.
    """
    file = _memo_file()
    basis = _basis(target) if file else None
    if file is None or basis is None:
        return _read(target, by_name)
    memo = _memo(file)
    kinds = _recalled(memo, target, by_name, basis)
    if kinds is not None and _module(target) not in sys.modules:
        return Signature(_unpickled(kinds), basis.source)
    found = _read(target, by_name)
    if kinds is None:
        _remember(memo, target, by_name, basis, found)
        _write(file, memo)
    return found


def _recalled(memo: "Memo", target: str, by_name: bool, basis: "Basis") -> bytes | None:
    entry = memo.get(f"{target} {by_name}")
    return entry.kinds if entry and entry.basis == basis else None


def _remember(memo: "Memo", target: str, by_name: bool, basis: "Basis", found: Signature) -> None:
    """Put it into the memo, if it was read from the basis and survives the writing."""
    kinds = _pickled(found.kinds)
    if kinds is not None and found.source == basis.source and _basis(target) == basis:
        memo[f"{target} {by_name}"] = Entry(basis, kinds)


ALL = "the presets"


def remember_presets() -> None:
    """Those of the presets' targets too, where JAX is imported: the next command may be about them.

    Once for each version of what they are made of; again where some could not be, as they were
    loaded before anybody looked.
    """
    file, basis = _memo_file(), Basis(_sources().stamp, None)
    memo = _memo(file) if file else {}
    if file is None or (ALL in memo and memo[ALL].basis == basis):
        return
    ours = [(target, by_name) for target, by_name in presets() if _ours(target)]
    known = [(target, by_name, own) for target, by_name in ours if (own := _basis(target))]
    for target, by_name, own in known:
        if _recalled(memo, target, by_name, own) is None:
            with suppress(Exception):
                _remember(memo, target, by_name, own, _read(target, by_name))
    if len(known) == len(ours):
        memo[ALL] = Entry(basis, b"")
    _write(file, memo)


def presets() -> list[tuple[str, bool]]:
    """Every target that a config file names, and whether it is an optimizer."""
    return sorted(
        {
            (target, file.parent.name == "optimizer")
            for file in paths.conf().rglob("*.yaml")
            for target in re.findall(r"_target_: ([\w.]+)", file.read_text(encoding="utf-8"))
        }
    )


def _module(target: str) -> str:
    return target.rpartition(".")[0]


def _read(target: str, by_name: bool) -> Signature:
    function = _located(target)
    parameters = inspect.signature(function).parameters
    if by_name:
        kinds = {name: kind(parameter) for name, parameter in parameters.items()}
    else:
        hints = typing.get_type_hints(function, include_extras=True)
        kinds = {name: hints.get(name, Any) for name in parameters}
    return Signature(kinds, _defined_in(function))


def _located(target: str) -> Any:
    log = logging.getLogger("hydra.utils")
    log.disabled, before = True, log.disabled  # it prints what it also raises
    try:
        return get_method(target)
    finally:
        log.disabled = before


def absent(target: str) -> str:
    """Says so where the target's module is there, and has nothing of that name; else ""."""
    module, _, name = target.rpartition(".")
    known = dir(sys.modules.get(module))
    if module not in sys.modules or name in known:
        return ""
    hint = nearest(name, [other for other in known if not other.startswith("_")])
    return f"the module {module} has no {name!r}{hint}"


def kind(parameter: inspect.Parameter) -> Any:
    """What an optimizer's parameter may be: by its name, the type of its default, or as annotated.

    An annotation is asked last: optax's say what a program may pass, as arrays.
    """
    if parameter.name in RANGES:
        return RANGES[parameter.name]
    plain = {bool: bool, int: int, float: FiniteFloat}
    return plain.get(type(parameter.default), plain.get(parameter.annotation, Any))


def _defined_in(function: Any) -> str | None:
    defined = inspect.unwrap(function)
    module = getattr(defined, "__module__", "")
    return None if _ours(module) else inspect.getsourcefile(defined)


def _ours(path: str) -> bool:
    """Whether what has this dotted path is ours or a library's, rather than the user's."""
    return path.partition(".")[0] in OURS and not f"{path}.".startswith("lmech.experiments.")


# ------------------------------------------------------------------ what a memo is valid for


class Basis(NamedTuple):
    """What a signature depends on: it is the same while this is."""

    stamp: str
    source: str | None
    """The user's file that it was read from."""


def _basis(target: str) -> Basis | None:
    """What the target's signature depends on; None if that is more than can be told from here.

    Of a module that is loaded, the basis is known if it was not yet loaded when that was first
    looked at: its file may have changed since it was read.
    """
    try:
        return _of_library(target) if _ours(target) else _of_user(target)
    except Exception:  # no such module, or a package that does not import: _read says which
        return None


def _of_library(target: str) -> Basis | None:
    sources = _sources()
    known = _stamped(target) and _module(target) not in sources.loaded
    return Basis(sources.stamp, None) if known else None


def _stamped(path: str) -> bool:
    """Whether the stamp covers the file: in a checkout, folders beside lmech's own are its too."""
    root, *inner = path.split(".")
    own = {f"{part}{end}" for part in inner[:1] for end in ("", ".py")} - {"experiments"}
    return root in STAMPED and (root != "lmech" or bool(own & set(os.listdir(paths.package()))))


def _of_user(target: str) -> Basis | None:
    module, _, name = target.rpartition(".")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).read_bytes()
    stamp = _digest(_sources().stamp, spec.origin, hashlib.sha256(text).hexdigest())
    if module not in sys.modules:
        _seen[module] = stamp
    if _seen.get(module) != stamp or not _stands_alone(ast.parse(text), name):
        return None
    return Basis(stamp, spec.origin)


_seen: dict[str, str] = {}  # a user's module → its stamp when it was last seen before it was loaded


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Sources(NamedTuple):
    """Python and the libraries as they were when they were first looked at."""

    stamp: str
    loaded: frozenset[str]
    """The modules that were loaded already."""


@cache
def _sources() -> Sources:
    versions = [importlib.metadata.version(name) for name in DISTRIBUTIONS]
    stamp = _digest(sys.version, versions, [_tree(package) for package in STAMPED])
    return Sources(stamp, frozenset(sys.modules))


def _tree(package: str) -> list[tuple[str, int, int]]:
    """Path, size and modification time of each of a package's sources, which stay unread."""
    spec = importlib.util.find_spec(package)
    (folder, *_) = (spec and spec.submodule_search_locations) or []
    files = sorted(f"{top}/{name}" for top, _, names in os.walk(folder) for name in names)
    stats = [(file, os.stat(file)) for file in files if file.endswith(".py")]
    return [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]


# What a user's module may import and still be known by its own text.
KNOWN = {
    *("__future__", "collections", "dataclasses", "functools", "itertools", "math", "typing"),
    *("annotated_types", "flax", "jax", "numpy", "optax", "pydantic"),
}
# By these a module could look elsewhere, or be other than it reads.
DOUBTFUL = {"__import__", "eval", "exec", "getattr", "globals", "open", "setattr", "vars"}
PLAIN = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def _stands_alone(module: ast.Module, name: str) -> bool:
    """Whether the text alone says what ``name`` is: one plain definition, of known things."""
    body = module.body[1:] if ast.get_docstring(module) else module.body
    defined = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    nodes = list(ast.walk(module))
    return (
        all(isinstance(node, PLAIN) for node in body)
        and not any(_doubtful(node) for node in nodes)
        and [bound for node in nodes for bound in _binds(node)].count(name) == 1
        and any(node.name == name and not node.decorator_list for node in defined)
    )


def _doubtful(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            imported = [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            imported = [f"{'.' * level}{module}.{alias.name}" for alias in names]
        case _:
            imported = []
    return (
        isinstance(node, ast.Global)
        or (isinstance(node, ast.Name) and node.id in DOUBTFUL)
        or (isinstance(node, ast.Attribute) and node.attr.startswith("__"))
        or any(path.endswith("*") for path in imported)
        or not all(path.partition(".")[0] in KNOWN or _stamped(path) for path in imported)
    )


def _binds(node: ast.AST) -> list[str]:
    """Names that a statement gives a meaning to."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Name(id=name, ctx=ast.Store()):
            return [name]
        case ast.alias(name=name, asname=other):
            return [other or name.partition(".")[0]]
    return []


# ---------------------------------------------------------------------------- the memo on disk


class Entry(NamedTuple):
    """What was read, and what it depends on."""

    basis: Basis
    kinds: bytes


Memo = dict[str, Entry]


def _memo_file() -> Path | None:
    """The memo of this installation; None where there is no folder to be trusted with it."""
    which = _digest(str(paths.package()), sys.prefix, sys.version)[:12]
    folder = paths.private_cache()
    return folder / f"signatures-{which}.json" if folder else None


@cache
def _memo(file: Path) -> Memo:
    """What the file holds: a checksum, then the entries. Nothing if it is damaged."""
    with suppress(OSError, ValueError, TypeError):
        checksum, text = file.read_text(encoding="utf-8").splitlines()
        if checksum == _digest(text):
            return {
                key: Entry(Basis(*basis), bytes.fromhex(kinds))
                for key, (basis, kinds) in json.loads(text).items()
            }
    return {}


def _write(file: Path, memo: Memo) -> None:
    """A memo that cannot be written costs the next start some seconds, no more."""
    text = json.dumps({key: [entry.basis, entry.kinds.hex()] for key, entry in memo.items()})
    with suppress(OSError):
        atomically(file, lambda temporary: temporary.write_text(f"{_digest(text)}\n{text}\n"))


# What types are pickled as is made of these; any other class is imported when it is looked at.
BUILDING = {
    *("builtins", "typing", "types", "annotated_types", "pydantic.types", "pydantic.fields"),
    *("_operator", "_functools", "lmech.tables"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if module in BUILDING else _stand_in(module, name)


def _stand_in(module: str, name: str) -> type:
    """A class that pydantic sees as the one of that name, imported only when it checks by it."""

    def schema(_: type, __: Any, handler: Any) -> Any:
        return handler.generate_schema(pkgutil.resolve_name(f"{module}:{name}"))

    def new(*_: Any) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is a class, and not an object of it")

    return type(name, (), {"__get_pydantic_core_schema__": classmethod(schema), "__new__": new})


def _pickled(kinds: dict[str, Any]) -> bytes | None:
    """None for kinds that do not survive it."""
    try:
        content = pickle.dumps(kinds)
        _unpickled(content)
    except Exception:
        return None
    return content


def _unpickled(content: bytes) -> dict[str, Any]:
    return typing.cast(dict[str, Any], _Unpickler(io.BytesIO(content)).load())
