"""Fixtures and the strictness that all tests run under."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import hypothesis
import jax
import pytest

from lmech import planning, programs
from lmech.numerics.precision import numerics

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 1)  # a sweep of mode auto would ask for more
# On a busy machine one example of many takes long: that says nothing of the code.
hypothesis.settings.register_profile("lmech", deadline=None)
hypothesis.settings.load_profile("lmech")
# Most of a test's time is compilation, often of a program that another test has compiled.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture
def x64():
    """The engine's numerical context."""
    with numerics():
        yield


@pytest.fixture(scope="session", autouse=True)
def memo_folder(tmp_path_factory):
    """A cache folder of the tests' own, for the processes that they start too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LMECH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """A module's compiled programs go with it: a process may have so many memory maps only."""
    yield
    programs.forget()


@pytest.fixture(autouse=True)
def forgetful_imports(tmp_path_factory, monkeypatch):
    """A module that a test wrote is not the next test's: theirs may have the same name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(written):
            del sys.modules[name]
    planning._source.cache_clear()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder, root = tmp_path_factory.mktemp("wheel"), str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), root]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """Runs Python with the wheel, in a folder: ``installed(folder, "-m", "lmech", …)``.

    In an environment of its own that borrows the dependencies, so that no index is needed.
    """
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(here, *words):
        return subprocess.run(
            [python, *words], check=False, cwd=here, capture_output=True, text=True, env=environment
        )

    return run


@pytest.fixture(scope="session")
def data_folder():
    """The user's folder of real data, or skip."""
    if "LMECH_DATA" not in os.environ:
        pytest.skip("set LMECH_DATA to a folder with the real datasets")
    return os.environ["LMECH_DATA"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The working directory is a copy of the project of the docs."""
    kept = shutil.ignore_patterns("__pycache__", "outputs")
    source = Path(__file__).parent / "user_project"
    folder = shutil.copytree(source, tmp_path / "user_project", ignore=kept)
    monkeypatch.chdir(folder)
    sys.path.append(str(folder))
    return folder
