"""Jobs in processes of their own, launched as a user launches a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

# What Lightning and torch take from the environment: another job in this process may have left it behind.
_OF_A_JOB = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "LOCAL_RANK",
    "GLOBAL_RANK",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)


def launch(script: str, *arguments: object, killed: bool = False, timeout: float = 400, **variables: str) -> None:
    """Run a script of this folder to its end, Lightning starting the further processes itself.

    Args:
        script: name of the file.
        arguments: for the script.
        killed: whether it is to die on the way.
        timeout: seconds; a job that hangs ends then, with all of its processes.
        variables: of the environment.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_JOB}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as job:
        try:
            said, _ = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            raise AssertionError(f"{script} hangs; it said {job.communicate()[0][-3000:]}") from None
    assert (job.returncode == 0) != killed, said[-3000:]
