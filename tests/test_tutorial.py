"""Every command and every block of Python of the tutorial, run in an empty folder."""

import sys
from pathlib import Path

import pytest
from commands import blocks, shell

PAGE = "docs/tutorial.md"
EXEMPT = {
    "make quickstart\n": "CI runs it from a fresh clone",
    "pip install -e .\n": "`make quickstart` does it, in an environment of its own",
}


def test_every_block_of_the_tutorial_is_a_file_or_is_run():
    kinds = {(block.file is not None, block.language) for block in blocks(PAGE)}
    assert kinds == {(True, "python"), (True, "yaml"), (False, "bash"), (False, "python")}
    run = {block.text for block in blocks(PAGE) if block.file is None}
    assert EXEMPT.keys() <= run
    assert len(run - EXEMPT.keys()) >= 8


@pytest.mark.slow
def test_the_tutorial_from_an_empty_folder(tmp_path):
    folder, where, session = tmp_path, tmp_path / ".where", ""
    for block in blocks(PAGE):
        if block.file is not None:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.text not in EXEMPT:
            # Blocks of Python that follow one another are one session.
            session = f"{session}{block.text}" if block.language == "python" else ""
            script = f"{sys.executable} - <<'END'\n{session}END\n" if session else block.text
            done = shell(f'{script}pwd > "{where}"\n', folder)
            assert done.returncode == 0, block.text + done.stdout + done.stderr
            folder = Path(where.read_text(encoding="utf-8").strip())
            print(done.stdout)  # pytest -s shows what readers see
    assert folder.name == "my_project"
