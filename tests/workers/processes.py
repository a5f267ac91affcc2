"""Jobs in processes of their own: started by Lightning as from a user's script, or from outside as by torchrun."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
FOLDERS = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1] / "examples")]
# What Lightning and torch take from the environment: another job in this process may have left it behind.
_OF_A_JOB = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "GLOBAL_RANK", "RANK", "WORLD_SIZE"}


def launch(script: str, *arguments: object, killed: bool = False, timeout: float = 400, **variables: str) -> None:
    """Run a script of this folder to its end; Lightning starts the further processes itself.

    Args:
        script: name of the file.
        arguments: for the script.
        killed: whether it is to die on the way.
        timeout: seconds; a job that hangs ends then, with all of its processes.
        variables: of the environment.
    """
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment(**variables), start_new_session=True, **pipes) as job:
        try:
            said, _ = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            raise AssertionError(f"{script} hangs; it said {job.communicate()[0][-3000:]}") from None
    assert (job.returncode == 0) != killed, said[-3000:]


def run_ranks(script: str, *arguments: object, ranks: int = 2, killed: bool = False, timeout: float = 200) -> None:
    """Call `main(*arguments)` of a script of this folder in processes that exist before Lightning does.

    They are forked from a server that has imported torch and Lightning already: a start takes a tenth of a second
    and not ten.

    Args:
        script: name of the file.
        arguments: for its `main`, as strings.
        ranks: number of processes.
        killed: whether they are to die on the way.
        timeout: seconds, after which a job that hangs is ended.
    """
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        logs = [Path(folder, str(rank)) for rank in range(ranks)]
        port = str(server.getsockname()[1])
        server.close()
        jobs = [
            _server().Process(target=_rank, args=(script, [*map(str, arguments)], rank, ranks, port, str(log)))
            for rank, log in enumerate(logs)
        ]
        for job in jobs:
            job.start()
        codes = _exit_codes(jobs, time.monotonic() + timeout)
        said = "\n".join(
            f"--- rank {rank}, exit {codes[rank]}\n{log.read_text()[-3000:]}" for rank, log in enumerate(logs)
        )
    assert all((code == 0) != killed for code in codes), said


def run_alone(script: str, *arguments: object, timeout: float = 200) -> None:
    """Call `main(*arguments)` of a script in one process that knows of no job: it starts further ones itself."""
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        job = _server().Process(target=_alone, args=(script, [*map(str, arguments)], str(log)))
        job.start()
        (code,) = _exit_codes([job], time.monotonic() + timeout)
        assert code == 0, log.read_text()[-3000:]


def environment(**variables: str) -> dict[str, str]:
    """The environment of a job: nothing that another job has left behind, and the folders of the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_JOB}
    path = os.pathsep.join(dict.fromkeys([*FOLDERS, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}


def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["processes_preloaded"])
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    return context


def _exit_codes(jobs: list[BaseProcess], until: float) -> list[int | None]:
    """Of all of them; the others are ended when one fails, or when time is over."""
    while any(job.is_alive() for job in jobs):
        failed = any(job.exitcode not in (None, 0) for job in jobs)
        if time.monotonic() > until or failed:
            time.sleep(2 if failed else 0)  # for what the others have to say
            for job in jobs:
                job.kill()
        time.sleep(0.02)
    for job in jobs:
        job.join()
    return [job.exitcode for job in jobs]


def _rank(script: str, arguments: list[str], rank: int, ranks: int, port: str, log: str) -> None:
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    places["RANK"] = str(rank)  # for torch itself
    _alone(script, arguments, log, WORLD_SIZE=str(ranks), **places)


def _alone(script: str, arguments: list[str], log: str, **variables: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    wanted = environment(**variables)
    os.environ.clear()
    os.environ.update(wanted)
    sys.argv = [script, *arguments]
    import_module(script.removesuffix(".py")).main(*arguments)
