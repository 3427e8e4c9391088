"""The undisturbed chain, with a snapshot before each command and after the last one."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .chain import ROOT, Step, chain, inventory, prepare
from .processes import environment


class Snapshots:
    """The undisturbed chain in a work folder. A chain that is there already is used again.

    Args:
        work: Folder of the chain, its snapshots and logs.
        wanted: Names or kinds of commands; the chain ends with the last of them. Empty for the whole chain.
    """

    def __init__(self, work: Path, wanted: Sequence[str]) -> None:
        self.work, self.folder = work, work / "chain"
        every = chain(self.folder)
        self.chosen = [step for step in every if not wanted or {step.name, step.kind} & {*wanted}]
        self.steps = every[: every.index(self.chosen[-1]) + 1]

    def make(self) -> None:
        """Run the chain once, unless it is complete."""
        if len(self._times()) >= len(self.steps):
            return
        shutil.rmtree(self.work, ignore_errors=True)
        for command in prepare(self.folder):
            self.must(command)
        seconds = []
        for number, step in enumerate(self.steps):
            self._keep(number)
            started = time.monotonic()
            self.must(step.command())
            seconds.append(time.monotonic() - started)
            print(f"{step.name}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        self._keep(len(self.steps))
        (self.work / "undisturbed.json").write_text(json.dumps(seconds))

    def restore(self, step: Step) -> None:
        """Replace the chain's files by those before a command. The folder itself stays, as it may be a small disk."""
        for path in [*self.folder.iterdir()] if self.folder.exists() else []:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        shutil.copytree(self.before(step), self.folder, symlinks=True, dirs_exist_ok=True)

    def before(self, step: Step) -> Path:
        """Return the folder of the files before a command."""
        return self.work / "snapshots" / str(self.steps.index(step))

    def after(self, step: Step) -> Path:
        """Return the folder of the files after a command."""
        return self.work / "snapshots" / str(self.steps.index(step) + 1)

    def compare(self, step: Step) -> tuple[list[str], list[str]]:
        """Return the files that differ from the undisturbed ones after a command, and those that should not exist."""
        found, expected = inventory(self.folder), inventory(self.after(step))
        different = sorted(name for name in expected if found.get(name) != expected[name])
        return different, sorted(found.keys() - expected.keys())

    def seconds(self, step: Step) -> float:
        """Return how long an undisturbed command takes."""
        return self._times()[self.steps.index(step)]

    def must(self, command: Sequence[str]) -> None:
        """Run a command that must succeed."""
        variables = environment(self.folder, "undisturbed")
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def _keep(self, number: int) -> None:
        shutil.copytree(self.folder, self.work / "snapshots" / str(number), symlinks=True)

    def _times(self) -> list[float]:
        path = self.work / "undisturbed.json"
        return [float(each) for each in json.loads(path.read_text())] if path.exists() else []
