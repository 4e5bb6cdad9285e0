"""Ray Serve on this machine alone, in processes of its own that end with it.

`python -m tests.helpers.ray_process JSON` deploys sdexport.server.ray:app and answers commands, one
a line on its standard input, until that is closed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.helpers.live_server import PATIENCE, LiveServer

TITLE = "ray::ServeReplica:default:"
"""How Ray calls the processes of replicas, before the name of their deployment."""
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
LISTENS = "0A"
"""Addresses, and a state, as the system's tables of sockets have them."""
ATTEMPTS = 4
"""Ray gives up to start after 30 s, which a busy machine may need."""


class RayProcess(LiveServer):
    """A cluster of one node with the application.

    Attributes:
      folder: of Ray's own files; every process of the cluster knows it.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path, port: int) -> None:
        self.process, self.folder, self.port, self.headers = process, folder, port, {}

    def command(self, name: str) -> Any:
        """What the process answers to a command."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return answer_of(self.process)

    def replicas(self) -> int:
        """Workers that run."""
        return int(self.command("replicas"))

    def pids(self, deployment: str = "") -> list[int]:
        """The processes of the cluster, or those of the replicas of a deployment."""
        found = [pid for pid in processes() if str(self.folder) in environment(pid)]
        if deployment:
            found = [pid for pid in found if title(pid).startswith(TITLE + deployment)]
        return found

    def reachable(self) -> list[str]:
        """The processes of the cluster that listen on more than this machine, by their titles."""
        own = {link: title(pid) for pid in self.pids() for link in links(pid)}
        found = []
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                parts = line.split()
                address, port = parts[1].split(":")
                owner = own.get(f"socket:[{parts[9]}]")
                if parts[3] == LISTENS and owner is not None and address not in LOOPBACK:
                    found.append(f"{owner} on port {int(port, 16)}")
        return found


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def environment(pid: int) -> str:
    """The environment and the arguments of a process; empty if it has ended."""
    with suppress(OSError):
        parts = [Path("/proc", str(pid), name).read_bytes() for name in ("environ", "cmdline")]
        return b"\0".join(parts).decode(errors="replace")
    return ""


def title(pid: int) -> str:
    with suppress(OSError):
        return Path("/proc", str(pid), "cmdline").read_bytes().decode(errors="replace")
    return ""


def links(pid: int) -> list[str]:
    """What the open files of a process are."""
    found = []
    with suppress(OSError):
        for path in Path("/proc", str(pid), "fd").iterdir():
            with suppress(OSError):
                found.append(str(path.readlink()))
    return found


def answer_of(process: subprocess.Popen[str]) -> Any:
    """The next line of JSON; Ray may print others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("answer: "):
            return json.loads(line.removeprefix("answer: "))
    raise AssertionError("Ray's process has ended")


@contextmanager
def ray_process(**arguments: Any) -> Iterator[RayProcess]:
    """Deploy the application while a block runs, and leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = json.dumps({"arguments": arguments, "port": port, "folder": str(folder)})
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ray_process", given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment_of(folder),
            start_new_session=True,
        )
    found = RayProcess(process, folder, port)
    try:
        try:
            answer_of(process)
        except AssertionError as error:
            raise AssertionError((folder / "log").read_text()[-4000:]) from error
        yield found
    finally:
        end(found)


def environment_of(folder: Path) -> dict[str, str]:
    """Ray reports nothing, and listens on this machine alone."""
    return os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or it writes one into the home folder
        "SDEXPORT_RAY_TEST": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def end(found: RayProcess) -> None:
    """End the cluster: gracefully, and what is left at once."""
    assert found.process.stdin is not None and found.process.stdout is not None
    with suppress(BrokenPipeError):
        found.process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        found.process.wait(30)
    until = time.monotonic() + PATIENCE
    while (left := found.pids()) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            found.process.wait(0.1)
    found.process.stdout.close()
    shutil.rmtree(found.folder, ignore_errors=True)
    assert not left


def answer(value: Any) -> None:
    """Answer a command; Ray may print further lines."""
    sys.stdout.write(f"answer: {json.dumps(value)}\n")
    sys.stdout.flush()


def main(given: Mapping[str, Any]) -> None:
    """Deploy, and answer commands until there are no more."""
    import ray
    from ray import serve
    from ray._private import services

    from sdexport.server.ray import WORKER, app

    services.resolve_ip_for_localhost = lambda host: host  # or Ray takes another address for it
    for attempts in reversed(range(ATTEMPTS)):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                log_to_driver=False,
                _temp_dir=given["folder"],
                _node_ip_address="127.0.0.1",
            )
            break
        except Exception:
            if not attempts:
                raise
            ray.shutdown()
    serve.start(http_options={"host": "127.0.0.1", "port": given["port"]})
    serve.run(app(given["arguments"]), name="default")
    answer(True)
    for line in sys.stdin:
        assert line == "replicas\n"
        deployment = serve.status().applications["default"].deployments[WORKER]
        answer(deployment.replica_states.get("RUNNING", 0))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
