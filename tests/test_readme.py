"""What the README says is what happens."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from lmech import config, launching

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    return found


def test_the_experiment_of_the_readme_is_two_short_files_and_its_claim_holds(tmp_path):
    for folder in ("conf", "experiments", "lmech"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    module = tmp_path / "experiments" / "linear_stability" / "__init__.py"
    module.parent.mkdir()
    module.write_text(block("python"), encoding="utf-8")
    yaml = tmp_path / "conf" / "experiment" / "linear_stability.yaml"
    yaml.write_text(block("yaml"), encoding="utf-8")
    lines = (block("python") + block("yaml")).splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 20
    program = "import sys, lmech.cli; sys.exit(lmech.cli.main(['reproduce', 'linear_stability']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (claims,) = tmp_path.glob("outputs/linear_stability/*/claims.json")
    (claim,) = json.loads(claims.read_text(encoding="utf-8"))
    assert claim["verdict"] == "holds"
    assert claim["values"] == [1.0] * 4
    summary = json.loads((claims.parent / "summary.json").read_text(encoding="utf-8"))
    assert summary["compilations"] + summary["cached_compilations"] == 1
    assert summary["diverged"] > 0


def test_the_commands_of_the_readme_plan_what_they_say():
    others = "reproduce|plan|list|collect|report|log|resume|measure|submit|init_from=JOB|verify"
    lines = re.findall(rf"^    lmech (?!{others})(.*?)  +\S", README, re.M)
    jobs = []
    for line in lines:
        words = shlex.split(line)
        own = [word for word in words if word != "-m" and not launching.is_hydras(word)]
        jobs.append(len(launching.jobs_of(own, multirun="-m" in words)))
    assert jobs == [1, 6, 20, 4, 54, 4]


def test_the_groups_that_the_readme_names_exist():
    images = {"mnist", "fashion_mnist", "cifar10", "digits"}
    text = {"tinyshakespeare", "wikitext2"}
    made = {"gaussian", "power_law", "chebyshev", "modular", "sparse_parity", "xor_clusters"}
    made |= {"gaussian_clusters", "multi_index", "teacher_student", "piecewise_linear", "one_hot"}
    made |= {"rotated_digits", "repeated_digits"}
    made |= {"power_law_regression"}
    assert images | text | made == set(config.groups()["dataset"])
    assert {name for name in images | text | made if f"`{name}`" not in README} == set()
