"""What a shell shows for a TAB, and that shells show it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmech import catalogue, cli, completing, config, values
from lmech.commands import completion, resume

ROOT = Path(__file__).parents[1]


def texts(line):
    """The words that may come where ``|`` stands."""
    *before, current = line.removesuffix("|").split(" ")
    return [word.text for word in completing.complete(before, current, cli.COMMANDS)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("repro|", ["reproduce"]),
        ("optim|", ["optimizer=", "optimizer."]),
        ("optimizer=a|", ["optimizer=adagrad", "optimizer=adam", "optimizer=adamw"]),
        ("optimizer=adam,s|", ["optimizer=adam,scalar_rmsprop", "optimizer=adam,sgd"]),
        ("observables=[loss,tr|", ["observables=[loss,trace"]),
        ("model.wi|", ["model.width="]),
        ("model=vit model.pa|", ["model.patch="]),
        ("model=mlp model.pa|", []),
        ("-m seed=0,1 st|", ["steps=", "stop."]),
        ("stop.train_l|", ["stop.train_loss="]),
        ("rerun=|", ["rerun=missing", "rerun=failed", "rerun=all"]),
        ("model.activation=relu,t|", ["model.activation=relu,tanh"]),
        (
            "reproduce edge_of_stability_|",
            ["edge_of_stability_optimizers", "edge_of_stability_sgd"],
        ),
        ("reproduce grokking_xor model.|", ["model.width=", "model.spread=", "model.activation="]),
        ("reproduce edge_of_stability --sc|", ["--scale"]),
        ("reproduce edge_of_stability --scale |", ["default", "paper"]),
        ("plan --show |", ["parametrization"]),
        ("plan --ve|", ["--verify"]),
        ("plan repr|", ["reproduce"]),
        ("plan --verify reproduce lr_transfer_|", ["lr_transfer_sharpness"]),
        ("plan -m model.de|", ["model.depth="]),
        ("list obs|", ["observables"]),
        ("list models v|", ["vit"]),
        ("list model v|", ["vit"]),
        ("list keys optimizer=muo|", ["optimizer=muon"]),
        ("collect |", [completing.FOLDERS]),
        ("collect outputs --to |", [completing.FILES]),
        ("collect outputs --col|", ["--columns"]),
        ("measure outputs |", ["observables=", "observables."]),
        ("measure outputs observables=trace observables.trace.s|", ["observables.trace.samples="]),
        ("resume outputs/run/1 on|", ["on_failure="]),
        ("completion |", ["bash", "zsh", "fish"]),
        ("--config-dir |", [completing.FOLDERS]),
        ("--vers|", ["--version"]),
        ("nonsense wor|", []),
    ],
)
def test_a_word_becomes_what_may_stand_there(line, words):
    assert texts(line) == words


def test_nothing_written_yet_shows_commands_groups_and_keys():
    shown = texts("|")
    assert set(cli.COMMANDS) < set(shown)
    assert {f"{group}=" for group in config.groups()} < set(shown)
    assert {"steps=", "execution."} < set(shown)


@pytest.mark.parametrize(
    "words", [[], ["model=resnet", "optimizer=muon"], ["parametrization=mup"], ["optimizer=sgd"]]
)
def test_the_keys_are_those_that_hydra_composes(words):
    found = {key for key, _ in catalogue.leaves(completing.chosen(words))}
    ours = config.keys(config.compose(words))
    both = {key for key in found if key.partition(".")[0] not in ("defaults", "sweep")}
    assert {key for key in both if not key.startswith("experiment")} == set(ours)


@pytest.mark.parametrize("name", ["grokking_xor", "edge_of_stability_optimizers", "lr_transfer"])
def test_the_keys_of_an_experiment_are_too(name):
    words = [f"experiment={name}"]
    shown = {key for key, _ in catalogue.leaves(completing.chosen(words))}
    assert set(config.keys(config.compose(words))) - {"name"} <= shown


def test_every_value_that_is_offered_is_taken():
    node = completing.chosen([])
    offered = {
        key: catalogue.choices(node, key)
        for key, _ in catalogue.leaves(node)
        if not key.endswith("_target_")
    }
    known = config.resolve(config.compose([]))
    assert {"rerun", "model.activation", "dataset.standardize", "execution.mode"} <= set(offered)
    for key, words in offered.items():
        for word in words:
            (parsed,) = config.parse([f"{key}={word}"])
            values.check(key, parsed.value(), values.kind_of(known, key))
    assert sum(map(len, offered.values())) > 50


def test_what_resume_takes_is_what_is_offered():
    assert completing.RESUMING == resume.HOW


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_commands_options_are_read_off_its_text_as_its_parser_has_them(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    told = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", capsys.readouterr().out, re.M)) - {"--help"}
    found = {name for one in completing.arguments(command) for name in one.names}
    assert {name for name in found if name.startswith("--")} == told


@pytest.mark.usefixtures("own")
def test_a_projects_options_and_keys_are_offered():
    assert texts("model=gat|") == ["model=gated"]
    assert texts("model=gated model.|") == ["model.width="]
    assert texts("reproduce stair|") == ["staircase"]


def test_a_project_is_found_by_the_flag_too(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert texts("model=gat|") == []
    assert texts("--config-dir user_project/conf model=gat|") == ["model=gated"]


@pytest.fixture
def shell(tmp_path):
    """A folder with the command `lmech`, and what a shell needs to find it."""
    command = tmp_path / "bin" / "lmech"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lmech "$@"\n')
    command.chmod(0o755)
    (tmp_path / "results").mkdir()
    (tmp_path / "a_file").write_text("")
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {"cwd": tmp_path, "env": {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}}


def run(words, given, folder):
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False, **folder)
    assert done.stderr == ""
    return done.stdout


BASH = {  # words as bash cuts them → COMPREPLY, and what becomes of the shell's options
    ("reprod",): "reproduce",
    ("optim",): "optimizer= optimizer.",
    ("model.wi",): "[-o nospace] model.width=",
    ("optimizer", "=", "adam"): "adam adamw",
    ("rerun", "="): "missing failed all",
    ("model", "=", "vit", "model.pa"): "[-o nospace] model.patch=",
    ("-m", "'optimizer.learning_rate=geomspace(1, 2, 3)'", "model.wi"): "[-o nospace] model.width=",
    ("'model.activation=ta",): "model.activation=tanh",
    ("collect", "res"): "[-o filenames] results",
    ("nothing_of_that_name",): "",
}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes(shell):
    given = 'eval "$(lmech completion bash)"; complete -p lmech; COMP_TYPE=9\n'
    given += 'compopt() { printf "[%s] " "$*"; }\n'
    for words in BASH:
        listed = " ".join(shlex.quote(word) for word in ("lmech", *words))
        given += f"COMP_WORDS=({listed}); COMP_CWORD={len(words)}\n"
        given += '_lmech lmech; echo "${COMPREPLY[@]}"\n'
    first, *found = run(["bash", "--norc"], given, shell).splitlines()
    assert first == "complete -F _lmech lmech"
    assert dict(zip(BASH, found, strict=True)) == BASH


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_completes(shell):
    given = f"""
compdef() {{ echo "compdef $*"; }}
{run(["sh", "-c", "lmech completion zsh"], "", shell)}
compadd() {{
    while [[ $1 != -a ]]; do [[ $1 == -S ]] && echo "suffix:$2"; shift; done
    print -l "${{(@P)2}}"
}}
_files() {{ echo "files $*"; }}
words=(lmech optim); CURRENT=2; _lmech
words=(lmech optimizer=adam); CURRENT=2; _lmech
words=(lmech collect ''); CURRENT=3; _lmech
"""
    assert run(["zsh", "-f"], given, shell).splitlines() == [
        *("compdef _lmech lmech", "suffix:", "optimizer=", "optimizer."),
        *("optimizer=adam", "optimizer=adamw", "files -/"),
    ]


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
def test_fish_completes(shell, tmp_path):
    folder = {**shell, "env": {**shell["env"], "HOME": str(tmp_path), "XDG_CONFIG_HOME": "cfg"}}

    def shown(line):
        given = f"lmech completion fish | source; complete -C '{line}'"
        return [text.split("\t") for text in run(["fish", "-c", given], "", folder).splitlines()]

    assert [word for word, *_ in shown("lmech optim")] == ["optimizer.", "optimizer="]
    assert ["optimizer=gd", catalogue.describe("optimizer", "gd")] in shown("lmech optimizer=g")
    assert [word for word, *_ in shown("lmech collect re")] == ["results/"]


def test_a_word_is_completed_without_hydra_or_numpy_and_fast(shell):
    words = ["lmech", "completion", "words", "optimizer=adam", "optimizer.b"]
    code = (
        "import sys; from lmech.cli import main; main(sys.argv[2:]);"
        "print([m for m in ('hydra', 'jax', 'numpy', 'pandas', 'pydantic') if m in sys.modules])"
    )
    out = run([sys.executable, "-c", code, *words], "", shell)
    assert out.splitlines() == ["optimizer.b1=\t", "optimizer.b2=\t", "[]"]
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        run(words, "", shell)
        seconds.append(time.perf_counter() - begun)
    bare = time.perf_counter()
    run([sys.executable, "-c", "pass"], "", shell)
    start = time.perf_counter() - bare
    # On a quiet machine 0.1 s; a busy one is given what it takes to start Python at all.
    assert min(seconds) < 0.3 + 5 * start


def test_each_script_is_printed_whole(capsys):
    for name, script in completion.SCRIPTS.items():
        assert cli.main(["completion", name]) == 0
        assert capsys.readouterr().out.strip() == script.strip()
