"""One run on several devices or machines: torch's elastic launcher starts the processes and restarts lost ones.

The config is composed once, here; `grouped_lm.jobs.worker` trains it in every process, in one run folder. See
https://docs.pytorch.org/docs/stable/distributed.elastic.html.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from grouped_lm.config import Config, TrainConfig, config_to_dict
from grouped_lm.distributed.process_group import describe_error, error_from, rank_and_size
from grouped_lm.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    ConfigError,
    DriftError,
    GvcError,
    RunFolderError,
)
from grouped_lm.runs.folder import COMPLETE, RunFolder, failed
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import resolve_device
from grouped_lm.train.loop import train

LOGS = "workers"
"""Folder in the run folder with what every process but the first of a machine said."""
JOB, OUTCOME = "job.json", "outcome.json"
"""In a folder of the launcher's own: the config for the processes, and what they leave behind, see `worker`."""
SAVE_S = 120
"""Seconds that processes asked to stop have for a last checkpoint."""
HANDLED = (signal.SIGTERM, signal.SIGINT)
"""Not SIGHUP: whoever starts a run with nohup has said what that is to do."""


def run_training(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train in this process, or start the processes that `train.devices` and `train.nodes` ask for.

    A process that `launch` or `torchrun` started trains itself.

    Returns:
        The result of the run, as `train.loop.train` does.
    """
    if config.train.processes > 1 and rank_and_size()[1] == 1:
        return launch(config, run_dir)
    return train(config, run_dir)


def launch(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train with `train.devices` processes on each of `train.nodes` machines, and return the run's result.

    Raises:
        ConfigError: there are fewer devices or machines here.
        GvcError: what the training raised, or that a process was lost more often than `train.max_restarts` allows.
        KeyboardInterrupt, SystemExit: asked to stop; the state was saved before.
    """
    folder = RunFolder(run_dir)
    folder.check_same_run(config)
    result = folder.read_result()
    if result is not None and result["state"] == COMPLETE:
        return result
    check_gpus(config.train.devices, resolve_device(config.train.device))
    run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gvc-") as scratch, own_signals():
        write_json(Path(scratch) / JOB, config_to_dict(config))  # the run folder may be another launcher's
        outcome = Path(scratch) / OUTCOME
        words = ["-m", "grouped_lm.jobs.worker", str(run_dir.absolute()), str(os.getpid()), scratch]
        try:
            elastic_launch(launch_config(config.train, run_dir), sys.executable)(*words)
        except SignalException as stopped:
            told = read_outcome(outcome)
            if "error" not in told:  # the last save may have failed
                told = {"stopped": EXIT_INTERRUPTED if stopped.sigval == signal.SIGINT else EXIT_PREEMPTED}
        except RendezvousError as error:
            raise alone(config.train, error) from error
        except ChildFailedError as failure:
            told = read_outcome(outcome)
            if "error" not in told:
                told = {"error": describe_error(lost(failure, config.train, run_dir))}
        else:
            told = read_outcome(outcome)
    if "error" in told:
        raised = error_from(told["error"])
        if not isinstance(raised, RunFolderError | DriftError):  # the folder is another's
            with contextlib.suppress(OSError):
                write_json(folder.result, failed(str(raised)))
        raise raised
    if "stopped" in told:
        raise_stop(told["stopped"])
    return told["result"]


def alone(train: TrainConfig, error: RendezvousError) -> GvcError:
    """Return what to say when the machines do not all meet."""
    _, endpoint = meeting_point(train)
    return GvcError(
        f"not all of {train.nodes} machines (train.nodes) met at {endpoint} ({type(error).__name__}): see what gvc "
        "said on the others and whether they reach that address; the same command on all of them goes on"
    )


def check_gpus(processes: int, device: torch.device) -> None:
    """Refuse more processes on this machine than it has GPUs; any number can share a CPU.

    Raises:
        ConfigError: there are fewer.
    """
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(
            f"train.devices={processes}, but torch sees {torch.cuda.device_count()} CUDA devices here: "
            "take as many, or train.device=cpu"
        )


def launch_config(train: TrainConfig, run_dir: Path) -> LaunchConfig:
    """Return how torch is to start the processes, and how they find each other.

    Raises:
        ConfigError: several machines are asked for where nobody says which.
    """
    quiet_elastic()
    id_, endpoint = meeting_point(train)
    return LaunchConfig(
        min_nodes=train.nodes,
        max_nodes=train.nodes,
        nproc_per_node=train.devices,
        run_id=id_,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        local_addr="localhost" if train.nodes == 1 else None,
        max_restarts=train.max_restarts,
        shutdown_timeout=SAVE_S,
        signals_to_handle=",".join(number.name for number in HANDLED),
        logs_specs=DefaultLogsSpecs(
            log_dir=str((run_dir / LOGS).absolute()),
            redirects={rank: Std.ALL if rank else Std.OUT for rank in range(train.devices)},
        ),
    )


def meeting_point(train: TrainConfig) -> tuple[str, str]:
    """Return the name of this launch and the HOST:PORT where its machines meet.

    In a SLURM job that is the job's first machine, with a port that follows from the job's number, so that two jobs
    can share a machine.

    Raises:
        ConfigError: several machines are asked for outside of a SLURM job of as many.
    """
    if train.nodes == 1:
        return f"gvc-{os.getpid()}", "localhost:0"
    environment = os.environ
    found = environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES")
    if found != str(train.nodes):
        there = f"this SLURM job has {found}" if found else "this is no SLURM job"
        raise ConfigError(
            f"train.nodes={train.nodes} needs a SLURM job with as many machines and one task on each ({there}); "
            "elsewhere start gvc train with torchrun on every machine and leave train.nodes out"
        )
    job = environment["SLURM_JOB_ID"]
    turn = environment.get("SLURM_RESTART_COUNT", "0")
    return f"gvc-{job}-{turn}", f"{first_host(environment['SLURM_JOB_NODELIST'])}:{20_000 + int(job) % 20_000}"


def first_host(nodelist: str) -> str:
    """Return the first machine of a SLURM list such as gpu[03-05,9].

    Raises:
        GvcError: SLURM's own command, which reads such lists, fails.
    """
    try:
        said = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, timeout=60, check=True
        )
        return said.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise GvcError(
            f"scontrol cannot say which machines {nodelist} is ({error}): is SLURM's client installed?"
        ) from error


def read_outcome(path: Path) -> dict[str, Any]:
    """Return what the processes agreed on and left behind, see `worker`; nothing where they were lost before."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def raise_stop(code: int) -> NoReturn:
    """End as a training that was asked to stop."""
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    raise SystemExit(code)


def lost(failure: ChildFailedError, train: TrainConfig, run_dir: Path) -> GvcError:
    """Return what to say when a process was lost for the last time."""
    rank, first = failure.get_first_failure()
    how = f"signal {-first.exitcode} ({signal.Signals(-first.exitcode).name})" if first.exitcode < 0 else ""
    return GvcError(
        f"process {rank} of {train.processes} ended with {how or first.exitcode}, after {train.max_restarts} restarts "
        f"(train.max_restarts); what the processes said is in {run_dir / LOGS}; the same command goes on"
    )


def quiet_elastic() -> None:
    """Leave out the launcher's own log, unless --debug asks for everything: what is lost is said here in one line."""
    if not os.environ.get("GVC_DEBUG"):
        for name in [*logging.Logger.manager.loggerDict]:
            if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
                logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Put the handlers back that the launcher replaces and leaves replaced."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, and nothing was replaced
            for number, handler in before.items():
                signal.signal(number, handler)
