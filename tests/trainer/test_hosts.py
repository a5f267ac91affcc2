"""Jobs over two hosts, and jobs of which a rank dies, in real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hosts_worker import EPOCHS, STEPS, WIDTH
from processes import HERE, environment

pytestmark = pytest.mark.matrix
WORKER = str(HERE / "hosts_worker.py")
HOSTS = {"lf-one": "10.93.7.1", "lf-two": "10.93.7.2"}


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them."""
    try:
        run("ip", "netns", "add", "lf-one")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    with ExitStack() as stack:
        stack.callback(run, "ip", "netns", "del", "lf-one")
        run("ip", "netns", "add", "lf-two")
        stack.callback(run, "ip", "netns", "del", "lf-two")
        run("ip", "link", "add", "lf-a", "netns", "lf-one", "type", "veth", "peer", "name", "lf-a", "netns", "lf-two")
        for name, address in HOSTS.items():
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "lf-a")
            run("ip", "-n", name, "link", "set", "lf-a", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield


def report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def torchrun(*arguments: str, host: str | None = None, **variables: str) -> subprocess.Popen[str]:
    inside = ["ip", "netns", "exec", host] if host else []
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "torch.distributed.run", *arguments],
        env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(job: subprocess.Popen[str], timeout: float = 200) -> None:
    said, _ = job.communicate(timeout=timeout)
    assert job.returncode == 0, said[-3000:]


def ranks(folder: Path, *arguments: str, count: int = 2) -> list[subprocess.Popen[str]]:
    """Processes that nobody ends when one of them dies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    places |= {"LOCAL_WORLD_SIZE": str(count), "GROUP_WORLD_SIZE": "1"}
    return [
        subprocess.Popen(
            [sys.executable, WORKER, str(folder), *arguments],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **places),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("undisturbed")
    for job in ranks(folder):
        finish(job)
    return report(folder)


def test_two_hosts_send_the_gradients_of_what_trains_and_their_replicas_are_equal(
    hosts: None, undisturbed: Any, tmp_path: Path
) -> None:
    jobs = [
        torchrun(
            "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", "--master-addr=10.93.7.1",
            "--master-port=29533", WORKER, str(tmp_path), host=host, GLOO_SOCKET_IFNAME="lf-a", TP_SOCKET_IFNAME="lf-a",
        )
        for rank, host in enumerate(HOSTS)
    ]  # fmt: skip
    for job in jobs:
        finish(job)
    found = report(tmp_path)
    assert found["apart"] == 0.0
    assert found["weights"] == undisturbed["weights"]
    layer = 4 * WIDTH * WIDTH  # bytes of the gradient of each stage; of two ranks each sends it once
    for epoch in range(EPOCHS):
        steps = found["wire"][epoch * STEPS + 1 : (epoch + 1) * STEPS - 1]  # neither the wrapper nor the checkpoint
        assert steps
        for bytes_sent in steps:
            assert bytes_sent / (layer * (epoch + 1)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("how", "rank"), [("change", 1), ("save", 0)])
def test_when_a_rank_dies_the_others_end_with_an_error_and_a_restart_goes_on(
    undisturbed: Any, tmp_path: Path, how: str, rank: int
) -> None:
    jobs = ranks(tmp_path, how, str(rank))
    until = time.monotonic() + 240
    try:
        for job in jobs:
            job.communicate(timeout=max(1.0, until - time.monotonic()))
    finally:
        for job in jobs:
            job.kill()
    assert jobs[rank].returncode == -signal.SIGKILL
    assert jobs[1 - rank].returncode not in (0, -signal.SIGKILL)
    assert not (tmp_path / "report.json").exists()
    for job in ranks(tmp_path, how, str(rank)):
        finish(job)
    assert report(tmp_path)["apart"] == 0.0
    assert report(tmp_path)["weights"] == undisturbed["weights"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="8 processes on one core take too long")
def test_eight_processes_have_equal_replicas(tmp_path: Path) -> None:
    for job in ranks(tmp_path, count=8):
        finish(job, timeout=400)
    assert report(tmp_path)["apart"] == 0.0
