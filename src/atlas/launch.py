"""Run an `atlas` command in the fork server if there is one, else in a Python of its own.

Started by the rules as a plain script (`python -IS launch.py measure ...`), so it imports little and starts in 20 ms.
"""

import json
import os
import socket
import sys


def main() -> int:
    job, _, path = os.environ.get("ATLAS_FORKSERVER", "").partition(":")
    with socket.socket(socket.AF_UNIX) as connection:
        # a cluster job inherits the variable from the submitting host, but must stay within its own allocation
        if job != os.environ.get("SLURM_JOB_ID", "") or not path or connection.connect_ex(path):
            os.execv(sys.executable, [sys.executable, "-m", "atlas", *sys.argv[1:]])
        request = {"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
        message = json.dumps(request).encode()
        socket.send_fds(connection, [len(message).to_bytes(4, "big")], [1, 2])
        connection.sendall(message)
        status = connection.recv(1)
    if not status:
        print(
            "atlas: the job was killed before it ended (out of memory, or the workflow was stopped)",
            file=sys.stderr,
        )
        return 137
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
