"""Trainings in several processes, forked from one that is warm, and set up as torch's launcher does it: gloo, here."""

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # DDP asks for it; here, so that no forked process has to import it
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401
from fault_tools import fork, nothing_measured, wait

from grouped_lm.config import Config
from grouped_lm.grouping import parse_grouping
from grouped_lm.heads import HEADS
from grouped_lm.train.loop import train

SHORTLIST = {"shortlist_size": 64, "directions": 0, "shared_rows": 100, "reserve": True, "start": "counts"}
"""The default head, for a small vocabulary."""
OPTIONS: dict[str, dict[str, Any]] = {"dense": {}, "grouped": {}, "shortlist": SHORTLIST}


def with_head(config: Config, head: str) -> Config:
    """The config with that head, and settings of it that a small vocabulary has room for."""
    grouping = parse_grouping("brown" if head == "shortlist" else "merge_rank")
    return dataclasses.replace(config, head=HEADS[head].schema(**OPTIONS[head]), grouping=grouping)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def together(processes: int, action: Callable[[], Any], log: Path, store_port: int | None = None) -> list[int]:
    """Run `action` in every process of a process group, and return their exit codes by rank.

    With the port of a store they meet in that one, as they do in a launcher's, which lives through restarts.
    """
    port = store_port or free_port()

    def start(rank: int) -> int:
        def run() -> None:
            os.environ |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": str(store_port is not None),
            }
            action()

        return fork(run, log.with_suffix(f".{rank}.log"))

    started = [start(rank) for rank in range(processes)]
    try:
        return [wait(pid) for pid in started]
    except AssertionError as error:
        said = "".join(log.with_suffix(f".{rank}.log").read_text()[-3000:] for rank in range(processes))
        raise AssertionError(f"{error}\n{said}") from error


def train_together(processes: int, config: Config, run_dir: Path, strategy: str = "ddp") -> None:
    """Train with one process, or with several of them, to the end."""
    made = dataclasses.replace(config, train=dataclasses.replace(config.train, strategy=strategy))

    def action() -> None:
        with nothing_measured():
            train(made, run_dir)

    run_dir.parent.mkdir(parents=True, exist_ok=True)
    if processes == 1:
        code = wait(fork(action, run_dir.with_suffix(".0.log")))
        codes = [code]
    else:
        codes = together(processes, action, run_dir)
    said = "".join(path.read_text()[-1500:] for path in run_dir.parent.glob(f"{run_dir.name}.*.log"))
    assert codes == [0] * processes, said
