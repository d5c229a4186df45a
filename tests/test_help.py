"""What --help says: of every command, and that its examples are command lines."""

import re
import shlex

import pytest

from lmech import cli, config, launching
from lmech.cli import main


def told(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_usage_has_its_groups_and_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for group in ("train", "experiments", "results", "machine", "more"):
        assert f"\n{group}\n  lmech" in text
    for command in cli.COMMANDS:
        assert f"  lmech {command}" in text
    assert "exit codes  0 fine" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_description_arguments_examples_and_exit_codes(command, capsys):
    text = told(capsys, command)
    assert text.startswith(f"usage: lmech {command}")
    description = text.split("\n\n")[1]
    assert len(description.split()) > 5
    for part in ("examples:", "exit codes:\n  0   ", "\n  2   "):
        assert part in text
    shown = text.partition("exit codes:")[0]
    if command != "verify":  # which takes nothing
        assert "positional arguments:" in shown or "(KEY=VALUE" in shown
    for line in text.splitlines():
        assert len(line) <= 100


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_examples_of_a_command_are_of_it_and_their_words_are_keys(command, capsys):
    examples = re.findall(r"^  (lmech .*|eval .*)$", told(capsys, command), re.M)
    assert examples
    for example in examples:
        assert f"lmech {command}" in example
        words = [word for word in shlex.split(example) if re.fullmatch(r"[\w.]+=.*", word)]
        own = [word for word in words if config.is_clusters(word)]
        assert not own or (command == "submit" and config.cluster(own))
        if command == "compare":
            own = words
            assert config.comparison(own)
        if command != "resume":
            launching.jobs_of([word for word in words if word not in own], multirun=True)
        else:
            config.parse(words)
