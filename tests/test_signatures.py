"""What a target takes is remembered on disk, and what has changed since is never believed."""

import ast
import json
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge
from pydantic import FiniteFloat

from lmech import cli, signatures, values
from lmech.values import ConfigError

ROOT = Path(__file__).parents[1]
SWEEP = [
    *("-m", "seed=0,1", "optimizer.learning_rate=0.1,0.2", "dataset=chebyshev"),
    *("model.width=2", "steps=1", "observables=[loss]", "loss._target_=mine.scaled"),
]
MINE = """
from typing import Annotated
import jax.numpy as jnp
from annotated_types import Ge
def scaled(by: Annotated[int, Ge(1)] = 1):
    return lambda f, y: by * jnp.sum((f - y) ** 2, axis=-1)
"""


def run(folder, *words, first=()):
    """The command in a process of its own."""
    return python(folder, "-m", "lmech", *words, first=first)


def python(folder, *words, first):
    """Python in a process of its own; what stands in ``first`` is found before packages."""
    path = os.pathsep.join(map(str, [*first, ROOT]))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished sweep of a user's loss, and one whose ``jax`` does not import."""
    folder, poison = tmp_path_factory.mktemp("sweep"), tmp_path_factory.mktemp("poison")
    (folder / "mine.py").write_text(MINE)
    (poison / "jax.py").write_text("raise ImportError('JAX was imported')\n")
    done = run(folder, *SWEEP)
    assert "4 done" in done.stdout, done.stderr
    return folder, poison


def test_a_finished_sweep_imports_no_jax(finished):
    folder, poison = finished
    done = run(folder, *SWEEP, first=[poison])
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 skipped" in done.stdout


def test_a_finished_sweep_of_edited_code_is_looked_at_anew(finished):
    folder, poison = finished
    (folder / "mine.py").write_text(MINE.replace("** 2", "** 4"))
    try:
        assert "JAX was imported" in run(folder, *SWEEP, first=[poison]).stderr
    finally:
        (folder / "mine.py").write_text(MINE)


ANSWERS = [
    (["plan", *SWEEP], 0, "4 finished; 0 programs"),
    (["--help"], 0, "exit codes"),
    (["list"], 0, "edge_of_stability"),
    (["list", "keys"], 0, "optimizer.learning_rate=0.1"),
    (["collect", "outputs"], 0, "train_loss"),
    (["optimizer.learning_rat=0.1"], 2, "did you mean 'optimizer.learning_rate'?"),
    (["optimizer=adamw", "optimizer.wd=0.1"], 2, "did you mean 'optimizer.weight_decay'?"),
    (["optimizer.momentum=2.0"], 2, "less than 1"),
    (["model=cnn", "model.width=0"], 2, "greater than or equal to 1"),
    ([*SWEEP, "loss.by=0"], 2, "loss.by=0: input should be greater than or equal to 1"),
]
ANSWER = """
import contextlib, io, json, sys
from lmech.cli import main
answers = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as error:
            code = main(words)
    answers.append([code, out.getvalue(), error.getvalue()])
print(json.dumps(answers))
"""


def test_what_trains_nothing_imports_no_jax(finished):
    folder, poison = finished
    asked = json.dumps([words for words, *_ in ANSWERS])
    done = python(folder, "-c", ANSWER, asked, first=[poison])
    assert not done.stderr
    answers = json.loads(done.stdout)
    for (words, code, said), (found, out, error) in zip(ANSWERS, answers, strict=True):
        assert (words, found) == (words, code)
        assert said in (error if code else out)
        assert error.count("\n") == (code == 2)


@pytest.fixture
def forgetful(tmp_path, monkeypatch):
    """An empty cache, a folder of modules, and a function that starts as if in a new process."""
    monkeypatch.setenv("LMECH_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signatures, "_seen", {})

    def forget():
        signatures._seen.clear()
        signatures._memo.cache_clear()
        sys.modules.pop("theirs", None)

    forget()
    yield tmp_path, forget
    forget()


def write(folder, text):
    (folder / "theirs.py").write_text(text)
    for compiled in folder.glob("__pycache__/*"):  # which Python takes for new within a second
        compiled.unlink()


def recalled(target="theirs.f"):
    """The signature, which must come from the memo."""
    found = signatures.signature(target, by_name=False)
    assert "theirs" not in sys.modules
    return found


def test_a_signature_is_read_once_and_is_then_the_same_without_the_module(forgetful):
    folder, forget = forgetful
    write(
        folder, "from typing import Literal\ndef f(a: Literal['x', 'y'], b: int | None = 3): ...\n"
    )
    first = signatures.signature("theirs.f", by_name=False)
    assert "theirs" in sys.modules
    forget()
    assert recalled() == first
    assert first == ({"a": Literal["x", "y"], "b": int | None}, str(folder / "theirs.py"))


def test_an_edited_module_is_read_again(forgetful):
    folder, forget = forgetful
    for kind in (int, str, float):
        write(folder, f"def f(a: {kind.__name__}): ...\n")
        forget()
        assert signatures.signature("theirs.f", by_name=False).kinds == {"a": kind}


def test_a_module_that_was_loaded_before_its_file_changed_is_not_remembered(forgetful):
    folder, forget = forgetful
    write(folder, "def f(a: int): ...\n")
    signatures.signature("theirs.f", by_name=False)
    write(folder, "def f(a: str): ...\n")
    assert signatures.signature("theirs.f", by_name=False).kinds == {"a": int}  # what is loaded
    forget()
    assert signatures.signature("theirs.f", by_name=False).kinds == {"a": str}


def test_another_module_of_the_same_name_earlier_on_the_path_is_read(forgetful, monkeypatch):
    folder, forget = forgetful
    write(folder, "def f(a: int): ...\n")
    signatures.signature("theirs.f", by_name=False)
    (folder / "nearer").mkdir()
    write(folder / "nearer", "def f(a: str): ...\n")
    monkeypatch.syspath_prepend(folder / "nearer")
    forget()
    assert signatures.signature("theirs.f", by_name=False) == (
        {"a": str},
        str(folder / "nearer" / "theirs.py"),
    )


def test_another_version_of_a_library_makes_the_memo_invalid(forgetful, monkeypatch):
    folder, forget = forgetful
    write(folder, "def f(a: int): ...\n")
    signatures.signature("theirs.f", by_name=False)
    forget()
    monkeypatch.setattr(signatures.importlib.metadata, "version", lambda _: "99")
    monkeypatch.setattr(signatures, "_sources", signatures._sources.__wrapped__)
    signatures.signature("theirs.f", by_name=False)
    assert "theirs" in sys.modules


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-40], lambda _: b"", lambda b: b[:80] + b"0" + b[81:]]
)
def test_a_damaged_memo_is_ignored_and_made_again(damage, forgetful):
    folder, forget = forgetful
    write(folder, "def f(a: int): ...\n")
    signatures.signature("theirs.f", by_name=False)
    file = signatures._memo_file()
    file.write_bytes(damage(file.read_bytes()))
    forget()
    assert signatures.signature("theirs.f", by_name=False).kinds == {"a": int}
    assert "theirs" in sys.modules
    forget()
    assert recalled().kinds == {"a": int}


@pytest.mark.parametrize(
    "text",
    [
        "from other import f",
        "from other import Rate\ndef f(a: Rate): ...",
        "from .other import Rate\ndef f(a: Rate): ...",
        "from typing import *\ndef f(a: int): ...",
        "import os\ndef f(a: int = os.cpu_count()): ...",
        "from lmech.experiments.mine import Rate\ndef f(a: Rate): ...",
        "from lmech import experiments\ndef f(a: int): ...",
        "from lmech.scripts.ranges import Rate\ndef f(a: Rate): ...",
        "import lmech\ndef f(a: lmech.experiments.mine.Rate): ...",
        "import functools\n@functools.cache\ndef f(a: int): ...",
        "def f(a: int): ...\ndef f(a: str): ...",
        "def f(a: int): ...\nf = lambda a: a",
        "if True:\n    def f(a: int): ...",
        "try:\n    from numpy import f\nexcept ImportError:\n    def f(a: int): ...",
        "def g(): ...\nf = g",
        "def g(): ...\ndef f(a: int): ...\nf.__wrapped__ = g",
        "def f(a: int): ...\nexec('f = 3')",
        "def f(a: int): ...\nx = exec('f = 3')",
        "def f(a: int): ...\ndef g():\n    global f\n    f = 3\nx = g()",
        "class g:\n    def f(self): ...",
        "",
    ],
)
def test_a_text_that_does_not_say_all_about_a_function_is_not_believed(text):
    assert not signatures._stands_alone(ast.parse(text), "f")


@pytest.mark.parametrize(
    "text",
    [
        "def f(a: int): ...",
        '"""Mine."""\nimport jax.numpy as jnp\nfrom lmech.losses import mse\ndef f(a: int): ...',
        "Rate = float\ndef g(): ...\ndef f(a: Rate): ...\nf.stability = g",
        "from flax import linen as nn\nclass f(nn.Module):\n    width: int = 3",
    ],
)
def test_a_text_that_stands_alone_is_believed(text):
    assert signatures._stands_alone(ast.parse(text), "f")


STAND_INS = (["Observable"], ["Wide", "NoneType"], ["Data"])
"""Classes of modules that are slow to import: in the memo another class stands for them."""


def _told(kind):
    return [part.__name__ for part in typing.get_args(kind) or [kind]]


def test_every_kind_that_we_ship_survives_the_memo():
    targets = signatures.presets()
    assert len(targets) > 40
    for target, by_name in targets:
        kinds = signatures._read(target, by_name).kinds
        kept = signatures._unpickled(signatures._pickled(kinds))
        assert kept.keys() == kinds.keys()
        for name, kind in kinds.items():
            assert kept[name] == kind or _told(kept[name]) == _told(kind) in STAND_INS


def test_presets_that_were_loaded_too_early_are_remembered_by_the_next_process(
    forgetful, monkeypatch
):
    _, forget = forgetful
    file, anew = signatures._memo_file(), signatures._sources.__wrapped__
    early = anew()._replace(loaded=frozenset({"optax"}))
    for sources in (early, early._replace(loaded=frozenset())):
        assert signatures.ALL not in signatures._memo(file)
        assert "optax.adamw True" not in signatures._memo(file)
        monkeypatch.setattr(signatures, "_sources", lambda sources=sources: sources)
        signatures.remember_presets()
        assert "lmech.models.mlp.mlp False" in signatures._memo(file)
        forget()
    assert signatures.ALL in signatures._memo(file)
    assert "optax.adamw True" in signatures._memo(file)
    monkeypatch.setattr(signatures, "presets", lambda: pytest.fail("they were remembered"))
    signatures.remember_presets()


def test_a_class_that_the_memo_does_not_import_checks_as_the_class_itself():
    from lmech.observables import Observable

    kept = signatures._unpickled(signatures._pickled({"of": Observable}))["of"]
    assert kept is not Observable
    for value in (3, "x", {"every": 3}):
        lines = []
        for kind in (Observable, kept):
            with pytest.raises(ConfigError) as error:
                values.check("observables.x.of", value, kind)
            lines.append(str(error.value))
        assert lines[0] == lines[1]


class Even:
    """A constraint of a user's own."""


@pytest.mark.parametrize(
    "kind", [Annotated[int, Even()], lambda: None, Annotated[Any, lambda x: x]]
)
def test_a_kind_that_would_lose_something_is_not_remembered(kind):
    assert signatures._pickled({"a": kind}) is None


@pytest.mark.parametrize(
    "kind", [Annotated[int, Ge(1)] | None, FiniteFloat, list[str], Literal["a"]]
)
def test_a_kind_of_known_parts_is_remembered_whole(kind):
    assert signatures._unpickled(signatures._pickled({"a": kind})) == {"a": kind}


def test_a_folder_that_others_can_write_to_holds_no_memo(tmp_path, monkeypatch):
    monkeypatch.setenv("LMECH_CACHE", str(tmp_path / "mine"))
    assert signatures._memo_file().parent == tmp_path / "mine"
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "mine").chmod(0o777)
    assert signatures._memo_file() is None
    assert signatures.signature("lmech.losses.mse", by_name=False) == ({}, None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMECH_CACHE", str(tmp_path / "file" / "below"))
    assert signatures._memo_file() is None


@pytest.mark.usefixtures("elsewhere")
def test_a_target_that_is_not_there_is_one_line(capsys):
    assert cli.main(["model._target_=lmech.models.mlp.mpl"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
