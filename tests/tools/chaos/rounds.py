"""One round: a snapshot of the chain, a fault in one command, the documented run after it, and the comparison."""

import json
import os
import random
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from .chain import Step
from .faults import KILL_SECONDS, SIGNAL_SECONDS, STRIKES, Fault
from .processes import Running, resize, shared_memory, small_disk
from .snapshots import Snapshots

FILMS = Path(__file__).with_name("films.py")
# Tries of one fault, each earlier in the command, and faults that are chosen if none strikes.
TRIES, SHORTER, CHOICES = 6, 0.7, 5
# Faults that are more than a signal, and whether a command can have them.
FULL_DISK = "full disk"
OTHERS: dict[str, Callable[[Step], bool]] = {
    FULL_DISK: lambda step: True,
    "flipped bit": lambda step: bool(step.inputs),
    "two starts": lambda step: True,
    "other world": lambda step: step.ranks > 1,
    "one film more": lambda step: step.is_training,
}
# Bytes of a small disk that is large enough.
ENOUGH = 2**31


@dataclass
class Verdict:
    """What a round found. It passed if nothing is listed.

    Attributes:
        moment: Seconds after the start at which the fault struck.
        codes: Exit codes of the disturbed runs and of the run after them.
        said: The last line of the disturbed run's output.
    """

    seed: int
    step: str
    fault: str
    moment: float = 0.0
    codes: list[int] = field(default_factory=list)
    said: str = ""
    different: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not (self.different or self.leftovers or self.orphans or self.shared or self.late or self.problems)


class Judge:
    """Rounds on an undisturbed chain.

    Args:
        can_mount: Whether this process may mount a small disk.
    """

    def __init__(self, snapshots: Snapshots, can_mount: bool) -> None:
        self.snapshots, self.work, self.folder = snapshots, snapshots.work, snapshots.folder
        self._can_mount = can_mount
        self._ways: dict[str, Callable[[Step, random.Random, Verdict], None]] = {
            FULL_DISK: self._full_disk,
            "flipped bit": self._flipped_bit,
            "two starts": self._two_starts,
            "other world": self._other_world,
            "one film more": self._one_film_more,
        }

    def round(self, seed: int, only: str | None = None) -> Verdict:
        """Disturb a command that the seed chooses, run it again and compare all files."""
        chance = random.Random(seed)
        choices = [
            (step, name) for step in self.snapshots.chosen for name in self._faults(step) if only in (None, name)
        ]
        steps = sorted({step.name for step, _ in choices})
        assert choices, f"no command can have the fault {only}"
        before = shared_memory()
        for _ in range(CHOICES):
            name = chance.choice(steps)
            step, fault = chance.choice([each for each in choices if each[0].name == name])
            verdict = Verdict(seed, step.name, fault)
            with self._disk() if fault == FULL_DISK else nullcontext():
                if not self._disturb(step, fault, chance, verdict):
                    continue  # nobody was there to be struck
                different, verdict.leftovers = self.snapshots.compare(step)
                verdict.different += different
            break
        else:
            verdict.problems.append(f"nothing could be disturbed in {CHOICES} choices")
        verdict.shared = sorted(shared_memory() - before)
        return verdict

    # --- the parts of a round

    def _disturb(self, step: Step, fault: str, chance: random.Random, verdict: Verdict) -> bool:
        """Disturb a command and run it again; return False if there was nobody to strike."""
        if fault in self._ways:
            self._ways[fault](step, chance, verdict)
            return True
        if not self._strike(step, next(each for each in STRIKES if each.name == fault), chance, verdict):
            return False
        self._again(step, verdict)
        return True

    def _strike(self, step: Step, fault: Fault, chance: random.Random, verdict: Verdict) -> bool:
        """Run a command, strike at a random moment and wait for the end of all its processes.

        Returns False if the process to strike never existed at that moment.
        """
        for tried in range(TRIES):
            self.snapshots.restore(step)
            verdict.codes.clear()
            running = self._start(step.command())
            # The undisturbed command may have been slower, when the machine was busy.
            verdict.moment = chance.uniform(0.02, 1.0) * self.snapshots.seconds(step) * SHORTER**tried
            running.sleep_until(verdict.moment)
            struck = running.is_running and fault.strike(running, chance)
            self._end(running, fault.limit if struck else self._patience(step), verdict)
            if struck:
                return True
        return False

    def _full_disk(self, step: Step, chance: random.Random, verdict: Verdict) -> None:
        """Run a command with less space than it writes; then with enough."""
        self.snapshots.restore(step)
        used = _size(self.folder)
        written = max(_size(self.snapshots.after(step)) - used, 0)
        resize(self.folder, _in_use(self.folder) + int(chance.uniform(0, 1) * written) // 4096 * 4096 + 4096)
        running = self._start(step.command())
        self._end(running, self._patience(step), verdict)
        self._one_line(running, verdict)
        resize(self.folder, ENOUGH)
        self._again(step, verdict)

    def _flipped_bit(self, step: Step, chance: random.Random, verdict: Verdict) -> None:
        """Run a command on an input with one wrong bit, then on the right one.

        It must refuse the file by name, or write the same files as without the damage.
        """
        self.snapshots.restore(step)
        found = (path for pattern in step.inputs for path in self.folder.glob(pattern))
        path = chance.choice(sorted(path for path in found if not path.is_symlink()))
        content = path.read_bytes()
        position, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
        _overwrite(path, content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        running = self._start(step.command())
        self._end(running, self._patience(step), verdict)
        _overwrite(path, content)
        where = f"a flipped bit at byte {position} of {path.relative_to(self.folder)}"
        if running.process.returncode == 0:
            if self.snapshots.compare(step) != ([], []):
                verdict.problems.append(f"{where} changed the output")
        elif path.name not in running.log.read_text(errors="replace"):
            verdict.problems.append(f"{where} was refused without its name: {verdict.said}")
        self._one_line(running, verdict)
        self._again(step, verdict)

    def _two_starts(self, step: Step, chance: random.Random, verdict: Verdict) -> None:
        """Start a command twice, the second time a moment later. At least one must succeed."""
        self.snapshots.restore(step)
        one = self._start(step.command())
        verdict.moment = chance.uniform(0, 1) * self.snapshots.seconds(step)
        one.sleep_until(verdict.moment)
        other = self._start(step.command())
        self._end(one, 2 * self._patience(step), verdict)
        self._end(other, 2 * self._patience(step), verdict)
        if 0 not in verdict.codes:
            verdict.problems.append("neither of two starts succeeded")
        for running in (one, other):
            if running.process.returncode != 0:
                self._one_line(running, verdict)
        self._again(step, verdict)

    def _other_world(self, step: Step, chance: random.Random, verdict: Verdict) -> None:
        """Kill a command and resume it on another number of ranks: the same bytes, or the same order of films."""
        ranks = chance.choice((1, 4))
        script = FILMS if step.is_training else None
        films = self.work / "films.jsonl"
        films.unlink(missing_ok=True)
        self.snapshots.restore(step)
        running = self._start(step.command(script=script), films)
        verdict.moment = chance.uniform(0.3, 1.0) * self.snapshots.seconds(step)
        running.sleep_until(verdict.moment)
        running.kill_all()
        self._end(running, KILL_SECONDS, verdict)
        after = self._start(step.command(ranks, script), films)
        self._end(after, 2 * self._patience(step), verdict)
        if after.process.returncode != 0:
            verdict.problems.append(f"on {ranks} ranks it failed: {verdict.said}")
        if not step.is_training:
            return
        if self._order(films) != self._order(self._undisturbed_films(step)):
            verdict.different.append("the order of the films")
        self.snapshots.restore(step)  # the bits differ by contract
        self._again(step, verdict)

    def _one_film_more(self, step: Step, chance: random.Random, verdict: Verdict) -> None:
        """Stop a training, give its dataset one film more, and take it away again."""
        self._strike(step, next(each for each in STRIKES if each.name == "kill group"), chance, verdict)
        stage = self.folder / f"runs/{step.experiment}/fold{step.name[-1]}"
        begun = any(stage.glob("*/checkpoints/step-*.pt"))
        shards, kept = self.folder / "shards", self.work / "shards"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(shards, kept, symlinks=True)
        extra = self.folder / "extra"
        synth = [sys.executable, "-m", "shards", "synth", str(extra), "--images", "1", "--size", "96", "--seed", "9"]
        self.snapshots.must([*synth, "--positive-rate", "1"])
        more = ["--dicom", str(extra / "dicom-images"), "--rle", str(extra / "train-rle.csv"), "--append"]
        self.snapshots.must(
            [sys.executable, "-m", "shards", "build", *more, "--image-size", "64", "--out", str(shards)]
        )
        if begun:
            running = self._start(step.command())
            self._end(running, self._patience(step), verdict)
            self._one_line(running, verdict)
            if running.process.returncode == 0 or "film" not in verdict.said:
                verdict.problems.append(f"one film more was not refused by name: {verdict.said}")
        shutil.rmtree(shards)
        shutil.copytree(kept, shards, symlinks=True)
        shutil.rmtree(extra)
        self._again(step, verdict)

    # --- running and comparing

    def _again(self, step: Step, verdict: Verdict) -> None:
        """Run the same command once more, as documented after any interruption. It must succeed."""
        said = verdict.said
        running = self._start(step.command())
        self._end(running, self._patience(step), verdict)
        if running.process.returncode != 0:
            verdict.problems.append(f"the run after it failed: {verdict.said}")
        verdict.said = said

    def _start(self, command: Sequence[str], films: Path | None = None) -> Running:
        log = self.work / "logs" / f"{uuid.uuid4().hex[:8]}.log"
        log.parent.mkdir(exist_ok=True)
        more = {"PNEUMO_CHAOS_FILMS": str(films)} if films else {}
        return Running(command, self.folder, uuid.uuid4().hex, log, **more)

    def _end(self, running: Running, limit: float, verdict: Verdict) -> None:
        """Wait for the end of a command and of all that it started; note what outlives its limit."""
        deadline = time.monotonic() + limit
        while running.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        if running.is_running:
            verdict.late.append(f"still running after {limit:.0f} s")
        # Its children end within seconds, however long it took itself.
        left = running.wait_for_all(max(deadline - time.monotonic(), 10.0))
        verdict.orphans += [f"{each.pid} {each.command[:200]}" for each in left]
        running.kill_all()
        running.process.wait()
        verdict.codes.append(running.process.returncode)
        lines = running.log.read_text(errors="replace").strip().splitlines()
        verdict.said = lines[-1][:300] if lines else ""

    def _one_line(self, running: Running, verdict: Verdict) -> None:
        """Note a failure that does not end with one line for the user."""
        lines = running.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("error: ", "Error: "))]
        if running.process.returncode != 0 and (not errors or any("Traceback" in line for line in lines)):
            verdict.problems.append(f"no clear line: {' / '.join(lines[-3:])[:400]}")

    def _undisturbed_films(self, step: Step) -> Path:
        """Return the films of an undisturbed training, recorded once."""
        path = self.work / f"films-{step.name}.jsonl"
        if not path.exists():
            self.snapshots.restore(step)
            verdict = Verdict(0, step.name, "none")
            self._end(self._start(step.command(script=FILMS), path), self._patience(step), verdict)
            assert verdict.codes == [0], verdict.said
        return path

    @staticmethod
    def _order(path: Path) -> dict[tuple[str, int], set[int]]:
        """Return the films of each step of each stage, over all ranks."""
        found: dict[tuple[str, int], set[int]] = {}
        for line in path.read_text().splitlines():
            told = json.loads(line)
            found.setdefault((told["stage"], told["step"]), set()).update(told["films"])
        return found

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Put the chain on a small disk for one round."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with small_disk(self.folder, ENOUGH):
            yield

    def _patience(self, step: Step) -> float:
        return 5 * self.snapshots.seconds(step) + SIGNAL_SECONDS

    def _faults(self, step: Step) -> list[str]:
        others = [*self._ways] if self._can_mount else [name for name in self._ways if name != FULL_DISK]
        return [
            *(each.name for each in STRIKES if each.applies(step)),
            *(name for name in others if OTHERS[name](step)),
        ]


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _in_use(folder: Path) -> int:
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def _overwrite(path: Path, content: bytes) -> None:
    """Change a file in place, as damage does: its times are kept."""
    times = path.stat() if path.exists() else None
    path.write_bytes(content)
    if times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
