"""A real SLURM cluster of two nodes on this host, with its munge key and ports, in one folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n0", "n1")
# Two daemons share this host's processors, and each counts them as its own. Any device file is a fake GPU.
CONFIG = """\
ClusterName=pneumo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=20
SlurmdTimeout=10
ReturnToService=1
MinJobAge=3600
FirstJobId={first_job}
GresTypes=gpu
NodeName=n[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=1000 Gres=gpu:4
PartitionName=normal Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""
GRES = "AutoDetect=off\nNodeName=n[0-1] Name=gpu File={files}\n"


def why_not() -> str | None:
    """Return what this machine lacks for a cluster, or None."""
    missing = [name for name in NEEDED if shutil.which(name, path=search_path()) is None]
    if missing:
        return f"{missing[0]} is missing; install slurm-wlm and munge"
    return None if os.geteuid() == 0 else "a cluster on one host needs root"


def search_path() -> str:
    """Return PATH with the folders of daemons, which some users' PATH lacks."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def until(is_so: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until a condition holds. Raises AssertionError, with its description, after too long."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain until {what}"
        time.sleep(0.05)


@dataclass
class Cluster:
    """The daemons in `folder`, and the commands that reach them with the variables of `environment`."""

    folder: Path
    environment: dict[str, str]
    daemons: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def run(self, *command: object, cwd: Path | None = None) -> str:
        """Return the output of a command. Raises AssertionError if it fails."""
        words = list(map(str, command))
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """Return scontrol's fields of a job or an array task, named 12 or 12_0."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.facts(job)["JobState"]

    def queue(self, *names: str) -> list[str]:
        """Return the pending and running jobs, each task by itself, optionally only those with these names."""
        named = [f"--name={','.join(names)}"] if names else []
        return self.run("squeue", "--noheader", "--array", "--format=%i", *named).split()

    def ended(self, *jobs: str) -> bool:
        return not set(jobs) & set(self.queue())

    def until(self, is_so: Callable[[], object], seconds: float, what: str, log: Path | None = None) -> None:
        """Wait as `until` does. The error shows the queue, the nodes, and the ends of a log or of a folder's logs."""
        try:
            until(is_so, seconds, what)
        except AssertionError as error:
            state = [self.run("squeue", "--long"), self.run("sinfo", "--long", "--Node")]
            paths = [] if log is None else sorted(log.glob("*.out")) if log.is_dir() else [log]
            tails = [f"{path}:\n{path.read_text()[-3000:]}" for path in paths if path.exists()]
            raise AssertionError("\n".join([str(error), *state, *tails])) from None

    def start(self) -> None:
        """Start munge, the controller and both nodes, and wait until both are idle."""
        munge = self.folder / "munge"
        for path in (munge, self.folder / "state", *(self.folder / f"spool.{node}" for node in NODES)):
            path.mkdir(mode=0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = {"key-file": key, "socket": munge / "socket", "pid-file": munge / "pid", "log-file": munge / "log"}
        places["seed-file"] = munge / "seed"
        options = [f"--{name}={path}" for name, path in places.items()]
        self._daemon("munged", "--foreground", "--force", *options)
        until((munge / "socket").exists, 20, "munge listens")
        files = ",".join(map(str, _device_files(self.folder, 4)))
        (self.folder / "gres.conf").write_text(GRES.format(files=files))
        host = socket.gethostname().split(".")[0]
        # Other workers of pytest may start a cluster on this host now. The port of a job is made of its id.
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        ports, first_job = _free_ports(17000 + 100 * worker), 1 + 1000 * worker
        config = CONFIG.format(folder=self.folder, host=host, ports=ports, first_job=first_job)
        (self.folder / "slurm.conf").write_text(config)
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        idle = ("sinfo", "--noheader", "--Node", "--states=idle", "--partition=normal", "--format=%N")
        until(lambda: self.run(*idle).split() == list(NODES), 60, f"both nodes are idle (logs in {self.folder})")

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}-{len(self.daemons)}.out").open("wb") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def stop(self) -> None:
        """Cancel the jobs, then end the daemons, the last one first."""
        try:
            self.run("scancel", "--user=root")
            until(lambda: not self.queue(), 60, "the queue is empty")
        finally:
            for daemon in reversed(self.daemons):
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def cluster_environment(folder: Path, variables: dict[str, str]) -> dict[str, str]:
    """Return the variables of commands for the cluster in a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "PNEUMO_"))}
    return {**kept, "PATH": search_path(), "SLURM_CONF": str(folder / "slurm.conf"), **variables}


def _device_files(folder: Path, count: int) -> Sequence[Path]:
    """Return files that serve as GPUs. SLURM only checks that they exist."""
    files = [folder / f"gpu{number}" for number in range(count)]
    for path in files:
        path.touch()
    return files


def _free_ports(start: int) -> list[int]:
    """Return three free ports in a row, from `start` on, for the controller and the two nodes."""
    for first in range(start, start + 100, 10):
        ports = [first, first + 1, first + 2]
        if all(_is_free(port) for port in ports):
            return ports
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
