"""A process that has imported torch, pandas and seaborn once and forks a copy of itself for every job.

Importing them costs about 3 CPU-seconds, more than many a measurement. The Snakefile starts the server when a run begins (`onstart`);
`launch.py`, which the rules call, hands its command line, environment and output over a Unix socket. The server lives
as long as the write end of its standard input: it cannot outlive the workflow, not even one ended by SIGKILL, and it
takes its jobs with it. A job also ends when its launcher does. Linux and macOS. A cluster job never uses the server of the
submitting host: it must stay within its allocation. One that holds several papers starts its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

VARIABLE = "ATLAS_FORKSERVER"
PRELOAD = (
    "torch",
    "scipy.stats",
    "pyarrow.parquet",
    "atlas.measure",
    "atlas.verify",
    "atlas.run",
    "atlas.figures.paper",
)


def prepare_environment(repository: Path) -> None:
    """Let the jobs of a workflow find atlas-job, the Python that runs snakemake, and the package of this repository."""

    def prepend(variable: str, *folders: Path) -> None:
        os.environ[variable] = os.pathsep.join(
            [*map(str, folders), *filter(None, [os.environ.get(variable)])]
        )

    # glibc gives large freed blocks back to the system at once, and a loop over large tensors spends its time on page faults
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        os.environ.setdefault(name, str(2**29))
    prepend("PATH", repository / "workflow" / "scripts", Path(sys.executable).parent)
    prepend("PYTHONPATH", repository / "src")


def start() -> subprocess.Popen[bytes]:
    """Start the server and name its socket in this process's environment; `stop` it, or just end this process."""
    folder = Path(tempfile.mkdtemp(prefix="atlas-"))  # mode 0700: nobody else can connect
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as listener:  # bound here, so that no job can come too early
        listener.bind(str(path))
        listener.listen(128)
        server = subprocess.Popen(
            [sys.executable, "-m", "atlas.forkserver", str(path), str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    os.environ[VARIABLE] = f"{os.environ.get('SLURM_JOB_ID', '')}:{path}"
    return server


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it still runs."""
    os.environ.pop(VARIABLE, None)
    if server.stdin:
        server.stdin.close()
    server.wait()


def serve(path: Path, fd: int) -> None:
    """Accept jobs from the listening socket `fd`, bound to `path`, until standard input is closed."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = (
        "1"  # a pool of threads would not survive fork
    )
    jobs: set[int] = set()
    with socket.socket(fileno=fd) as listener:  # launchers that come during the imports wait in its queue
        for name in PRELOAD:
            __import__(name)
        import gc

        gc.freeze()  # keeps the collector from touching, and so copying, the shared pages
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [], 1.0)
            _reap(jobs)
            if sys.stdin in ready:
                break
            if listener in ready:
                connection, _ = listener.accept()
                if (pid := os.fork()) == 0:
                    listener.close()
                    _work(connection)
                jobs.add(pid)
                connection.close()
    for pid in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    while jobs:
        _reap(jobs, wait=True)
    shutil.rmtree(path.parent, ignore_errors=True)


def _reap(jobs: set[int], wait: bool = False) -> None:
    while jobs:
        pid, _ = os.waitpid(-1, 0 if wait else os.WNOHANG)
        if not pid:
            return
        jobs.discard(pid)


def _work(connection: socket.socket) -> None:
    """The forked job: take over the launcher's output, directory and environment, run, report the exit status."""
    status = 1
    try:
        os.setsid()
        message, fds, _, _ = socket.recv_fds(connection, 4, 2)
        size = int.from_bytes(message, "big")
        request = json.loads(connection.recv(size, socket.MSG_WAITALL))
        for target, fd in enumerate(fds, start=1):
            os.dup2(fd, target)
            os.close(fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        threading.Thread(target=_end_with_launcher, args=(connection,), daemon=True).start()

        from atlas.cli import main

        try:
            main(request["arguments"])
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([status & 0xFF]))
        os._exit(status)


def _end_with_launcher(connection: socket.socket) -> None:
    if not connection.recv(1):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Path(sys.argv[1]), int(sys.argv[2]))
