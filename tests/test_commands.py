"""docs/commands.md lists every documented command with the test that runs it, and every command has valid options."""

from collections import Counter
from pathlib import Path

import pytest
from tools.command_options import problems
from tools.commands import NO_TEST, Command, Row, all_commands, command_lines, commands_of, missing_test, rows

PAGE = """\
Text with `pneumo-dist status RUNS`, `pneumo-dist prune
RUNS --dry-run` and `launch/train.sh`.

    alpha$ bash launch/train.sh --fold 0 \\
      --cpu 2     # a comment
    a result    of a command
    EXTRA=dali-cuda12 bash launch/setup.sh      what it does
    (cd RUNS && ls | sort)

```python
import sys
```

```sh
buildah bud --layers .
```
"""


def test_commands_are_found_in_blocks_and_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.commands.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    assert [(command.text, command.is_inline) for command in commands_of(tmp_path / "page.md")] == [
        ("bash launch/train.sh --fold 0 --cpu 2", False),
        ("EXTRA=dali-cuda12 bash launch/setup.sh", False),
        ("(cd RUNS && ls | sort)", False),
        ("buildah bud --layers .", False),
        ("pneumo-dist prune RUNS --dry-run", True),
    ]
    script = "#!/bin/bash\n# Do it.\n#   bash do.sh --a \\\n#     --b\n# Options:\n#   --a   one\n\n#   bash not.sh\n"
    (tmp_path / "do.sh").write_text(script)
    assert [command.text for command in commands_of(tmp_path / "do.sh")] == ["bash do.sh --a --b"]
    assert list(command_lines(["git clone x && cd x"])) == ["git clone x && cd x"]


def test_every_command_has_its_row() -> None:
    listed = {(row.page, row.text) for row in rows()}
    missing = [command for command in all_commands() if (command.page, command.text) not in listed]
    lines = [
        Row(each.page, each.text, "`tests/….py::test_…` (or: not run: REASON, or: by hand: REASON)").markdown()
        for each in missing
    ]
    assert not lines, "add to docs/commands.md, in the order of the pages:\n" + "\n".join(lines)


def test_every_row_is_of_a_command_and_there_once() -> None:
    known = {(command.page, command.text) for command in all_commands()}
    lines = [row.markdown() for row in rows() if (row.page, row.text) not in known]
    assert not lines, "remove from docs/commands.md, as no page has this command:\n" + "\n".join(lines)
    assert [row for row, count in Counter((row.page, row.text) for row in rows()).items() if count > 1] == []


def test_rows_name_tests_that_exist_or_a_reason() -> None:
    for row in rows():
        assert bool(row.tests) != row.runner.startswith(NO_TEST), row.markdown()
        assert [missing_test(name) for name in row.tests] == [None] * len(row.tests), row.markdown()
    assert sum(bool(row.tests) for row in rows()) > 90


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tests/test_commands.py::test_every_command_has_its_row", None),
        ("tests/test_commands.py::test_missing_tests_are_named[one]", None),
        ("tests/test_commands.py::test_every_command_has_its_row[one]", "is not parametrised"),
        ("tests/test_commands.py::test_nothing", "has no test_nothing"),
        ("tests/test_nothing.py::test_nothing", "does not exist"),
    ],
)
def test_missing_tests_are_named(name: str, problem: str | None) -> None:
    found = missing_test(name)
    assert found is None if problem is None else found is not None and problem in found


def test_every_command_is_parsed() -> None:
    wrong = [f"{each.page}: {each.text}\n    {line}" for each in all_commands() for line in problems(each)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pneumo-dist train --config demo --runs R --fold 0 --shards …", None),
        ("pneumo-dist train --config demo --fold 0", "train needs --runs"),
        ("pneumo-dist train … --fold 0", None),
        ("pneumo-dist train --config dmeo --runs R", "dmeo: no such config"),
        ("pneumo-dist train --config demo --runs R --fold one", "'one' is not a valid integer"),
        ("pneumo-dist train --config demo --runs R --set optim.lrr=1", "optim.lrr: no such config key"),
        ("pneumo-dist train --config demo --runs R --set stages.main.optim.lr=1", None),
        ("python -m pneumo_dist submit --config C --runs R --rule best", "'best' is not one of"),
        ("srun -n 2 python -m pneumo_dist doctr", "no command doctr"),
        ("pneumo-shards verify OUT more", "more: not an option or argument"),
        ("pneumo-shards build --dicom A --out B --imagesize 64", "No such option"),
        ("bash launch/pipeline.sh --config demo --shards S --runs R -- --dicm A", "No such option"),
        ("bash launch/pipeline.sh --config demo --shard S", "launch/pipeline.sh has no --shard"),
        ("bash launch/train.sh --config demo --allow-empty-fold --cpu 2", None),
        ("bash launch/nothing.sh --cpu", "no such script"),
        ("sbatch --array=1-8 slurm/prepare.sbatch --out S --foldz 5", "No such option"),
        ("python -m benchmarks.scaling --bach 2", "benchmarks.scaling has no --bach"),
        ("python -m benchmarks.nothing", "no such module"),
    ],
)
def test_wrong_options_of_a_command_are_named(text: str, problem: str | None) -> None:
    found = problems(Command("page", text))
    assert found == [] if problem is None else len(found) == 1 and problem in found[0], found
