"""A real SLURM cluster on this host: munged, slurmctld and four slurmd on loopback ports.

    python -m tests.slurm.cluster              run one until Ctrl-C
    python -m tests.slurm.cluster COMMAND ...  while a command runs; its exit status

--accounting before the command: with slurmdbd and MariaDB, so that sacct works.

Needs root, and Debian or Ubuntu: it installs slurm-wlm and munge if they are missing. Nodes n1 and n2 (partition all) and n3
and n4 (partition fragile) claim 4 CPUs, 8 GB and two make-believe GPUs each (device files that harm nobody). SLURM has
to find its configuration where it looks by default, /etc/slurm: a host that already belongs to a cluster is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.driver import Unavailable, apt_install, wait_for

ETC = Path("/etc/slurm")
MARK = "# written by tests/slurm/cluster.py"
PACKAGES = ("slurm-wlm", "munge")
FOR_ACCOUNTING = ("slurmdbd", "mariadb-server")
NODES = ("n1", "n2", "n3", "n4")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")

SLURM_CONF = """{mark}
ClusterName=atlas
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=17101
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType={proctrack}
TaskPlugin={task}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
{overmemory}
AccountingStorageType=accounting_storage/{accounting}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
KillWait=3
MinJobAge=300
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
NodeName=n[1-4] NodeAddr=127.0.0.1 NodeHostname={host} Port=[17111-17114] CPUs=4 RealMemory=8000 Gres=gpu:test:2
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP LLN=YES
PartitionName=fragile Nodes=n[3-4] MaxTime=INFINITE State=UP LLN=YES
"""
GRES_CONF = """{mark}
NodeName=n[1-4] Name=gpu Type=test File=/dev/null
NodeName=n[1-4] Name=gpu Type=test File=/dev/zero
"""
CGROUP_CONF = """{mark}
CgroupPlugin={plugin}
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
"""


SKIPPED = 77  # exit status when there cannot be a cluster here

ACCOUNTING = "slurmdbd\nAccountingStorageHost=127.0.0.1\nAccountingStoragePort=17102"
SLURMDBD_CONF = """{mark}
AuthType=auth/munge
DbdHost=localhost
DbdPort=17102
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=17306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def install(accounting: bool = False) -> None:
    """Install SLURM with apt-get, if it is not there. Raises Unavailable without root or apt-get."""
    programs = [*PROGRAMS, *(["slurmdbd", "mariadbd"] if accounting else [])]
    packages = [*PACKAGES, *(FOR_ACCOUNTING if accounting else [])]
    if os.geteuid() != 0:
        raise Unavailable("a test cluster needs root")
    if (conf := ETC / "slurm.conf").is_file() and MARK not in conf.read_text():
        raise Unavailable(f"this host belongs to a SLURM cluster already ({conf})")
    if not all(map(shutil.which, programs)):
        if not shutil.which("apt-get"):
            raise Unavailable(f"SLURM is not installed ({', '.join(programs)}), and there is no apt-get")
        apt_install(*packages)


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def works(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


class Cluster:
    """`with Cluster():` a running cluster; it is stopped at the end, also when this process is killed."""

    def __init__(self, accounting: bool = False) -> None:
        self.accounting = accounting
        self.folder = Path(tempfile.mkdtemp(prefix="atlas-slurm-"))
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        install(self.accounting)
        self.lock = open("/run/lock/atlas-slurm", "w")  # noqa: PTH123
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable("a test cluster is running on this host already") from None
        try:
            self._configure()
            self._munge()
            if self.accounting:
                self._account()
            self._daemon("slurmctld", "-D")
            for node in NODES:
                self._daemon("slurmd", "-D", "-N", node)
            wait_for(lambda: states() == dict.fromkeys(NODES, "idle"), "idle nodes")
        except BaseException:
            self.show_logs()
            self.__exit__()
            raise
        return self

    def show_logs(self, most: int = 8000) -> None:
        """Print the ends of the daemons' logs, to find out what went wrong."""
        for log in sorted(self.folder.glob("*.log")):
            print(f"== {log.name}", log.read_text()[-most:], file=sys.stderr, sep="\n")

    def __exit__(self, *_: object) -> None:
        if self.daemons:
            subprocess.run(["scancel", "--quiet", "--user=root"], check=False, timeout=30)
            time.sleep(1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for name in ("slurm.conf", "gres.conf", "cgroup.conf", "slurmdbd.conf"):
            (ETC / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        memory = Path("/sys/fs/cgroup/memory")
        cgroup1 = memory.is_dir() and os.access(memory, os.W_OK)
        values = {
            "mark": MARK,
            "host": socket.gethostname().split(".")[0],
            "folder": self.folder,
            "proctrack": "proctrack/cgroup" if cgroup1 else "proctrack/linuxproc",
            "task": "task/cgroup" if cgroup1 else "task/none",
            "overmemory": "" if cgroup1 else "JobAcctGatherParams=OverMemoryKill",
            "plugin": "cgroup/v1",
            "first": 100 * random.randint(1, 9999),  # no job of another cluster of ours has the same number
            "accounting": ACCOUNTING if self.accounting else "none",
        }
        ETC.mkdir(exist_ok=True)
        (ETC / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (ETC / "gres.conf").write_text(GRES_CONF.format(**values))
        if cgroup1:
            (ETC / "cgroup.conf").write_text(CGROUP_CONF.format(**values))
        (self.folder / "state").mkdir()
        if self.accounting:
            conf = ETC / "slurmdbd.conf"
            conf.touch(mode=0o600)
            conf.write_text(SLURMDBD_CONF.format(**values))

    def _account(self) -> None:
        """Start a database and slurmdbd."""
        self.folder.chmod(0o755)
        data, socket_file = self.folder / "database", self.folder / "database.socket"
        data.mkdir()
        for path in (data, self.folder):
            shutil.chown(path, "mysql")
        ask("mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db")
        self._daemon("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={socket_file}",
                     "--bind-address=127.0.0.1", "--port=17306")  # fmt: skip
        client = ("mariadb", "--no-defaults", f"--socket={socket_file}", "-e")

        wait_for(lambda: works(*client, "select 1"), "the database")
        ask(
            *client,
            "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'",
        )
        self._daemon("slurmdbd", "-D")
        wait_for(lambda: works("sacctmgr", "--immediate", "add", "cluster", "atlas"), "slurmdbd")

    def _munge(self) -> None:
        if works("munge", "-n"):
            return
        for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
            Path(folder).mkdir(exist_ok=True)
            shutil.chown(folder, "munge", "munge")
        self._daemon("runuser", "-u", "munge", "--", "munged", "--foreground")
        wait_for(lambda: works("munge", "-n"), "munged")

    def _daemon(self, *command: str) -> None:
        def end_with_parent() -> None:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

        log = (self.folder / f"{len(self.daemons)}-{command[0]}.out").open("wb")
        self.daemons.append(
            subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent
            )
        )


def states() -> dict[str, str]:
    """Node -> state."""
    try:
        rows = ask("sinfo", "--noheader", "-N", "--format=%N %t").splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    return dict(row.split() for row in rows)


def jobs() -> dict[str, tuple[str, str]]:
    """Job -> state, node; also of jobs that have ended."""
    rows = ask("squeue", "--noheader", "--states=all", "--format=%A|%T|%N").splitlines()
    return {job: (state, node) for job, state, node in (row.split("|") for row in rows)}


def set_node(node: str, state: str) -> None:
    ask("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")


def resume(node: str) -> None:
    def usable() -> bool:  # a node that was down may be back by itself, one that is cleaning up refuses
        if states()[node].rstrip("*") in ("idle", "mix", "alloc"):
            return True
        with contextlib.suppress(subprocess.CalledProcessError):
            set_node(node, "resume")
        return False

    wait_for(usable, f"{node} to come back")


def main(command: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        accounting = command[:1] == ["--accounting"]
        command = command[accounting:]
        with Cluster(accounting) as cluster:
            if command:
                environment = {**os.environ, "ATLAS_TEST_ACCOUNTING": str(int(accounting))}
                status = subprocess.run(command, env=environment, check=False).returncode
                if status:
                    cluster.show_logs()
                return status
            print(
                f"a SLURM cluster is up (sinfo, squeue, snakemake --profile slurm; logs in {cluster.folder}). Ctrl-C ends it"
            )
            signal.pause()
    except Unavailable as reason:
        print(f"NO SLURM CLUSTER: {reason}", file=sys.stderr)
        return SKIPPED
    except KeyboardInterrupt:
        print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
