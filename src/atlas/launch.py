"""Run an `atlas` command in the fork server if there is one, else in a Python of its own.

Started by the rules as a plain script (`python -IS launch.py measure ...`), so it imports little and starts in 20 ms.
"""

import json
import os
import socket
import sys


def main() -> int:
    path = os.environ.get("ATLAS_FORKSERVER", "")
    with socket.socket(socket.AF_UNIX) as connection:
        # a SLURM job may have inherited the variable from the submitting host: it must stay within its own allocation
        if "SLURM_JOB_ID" in os.environ or not path or connection.connect_ex(path):
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
