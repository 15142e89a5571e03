"""Check a run and start it, on one device or on several. Torch's elastic launcher starts and restarts the processes.

The config is composed once, in this process. `grouped_lm.jobs.worker` trains it in every process, in one run folder.
Source: https://docs.pytorch.org/docs/stable/distributed.elastic.html.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from grouped_lm.config import Config, TrainConfig, config_to_dict
from grouped_lm.data import prepare_data
from grouped_lm.data.loader import TrainBatches
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.distributed.process_group import (
    ProcessGroup,
    describe_error,
    error_from,
    processes_on_this_machine,
    rank_and_size,
)
from grouped_lm.distributed.vocab_parallel import VocabShard
from grouped_lm.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    ConfigError,
    DataError,
    DriftError,
    GvcError,
    RunFolderError,
)
from grouped_lm.evaluate.counts import counts_tokens
from grouped_lm.grouping import check_group_size
from grouped_lm.heads import needs_grouping
from grouped_lm.heads.losses import kernels
from grouped_lm.models.lm import check_head
from grouped_lm.plan.fake_step import with_train
from grouped_lm.plan.memory_check import batch_divisors
from grouped_lm.prior.store import counted_text
from grouped_lm.runs.checkpoint import list_checkpoints
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.init_from import check_source
from grouped_lm.runs.tensorboard import check_package
from grouped_lm.system.files import read_json_dict, write_json
from grouped_lm.system.phases import say
from grouped_lm.system.runtime import resolve_device
from grouped_lm.system.secret_values import refuse_secrets
from grouped_lm.system.signals import signal_handlers
from grouped_lm.train.capture import check_capture
from grouped_lm.train.loop import train
from grouped_lm.train.setup import saved_micro_batch

LOGS = "workers"
"""Folder in the run folder for the output of every process but the first of a machine."""
JOB, OUTCOME = "job.json", "outcome.json"
"""Files in a temporary folder of the launcher: the config for the processes, and what became of it (`worker`)."""
SAVE_S = 120
"""Seconds that processes have for a last checkpoint after a signal."""
HANDLED = (signal.SIGTERM, signal.SIGINT)
"""Not SIGHUP: under nohup a run must survive it."""


def check_processes(jobs: int | None = 1) -> tuple[int, int]:
    """Return the rank of this process and the number of processes that `torchrun` started, 0 and 1 without it.

    Several processes for a sweep (None), or for several `jobs`, raise a ConfigError.
    """
    rank, size = rank_and_size()
    if size > 1 and jobs != 1:
        raise ConfigError(
            "torchrun starts the processes of one job, and a sweep starts those of its jobs itself "
            "(train.devices): leave torchrun out"
        )
    return rank, size


def preflight(config: Config, run_dir: Path | None = None, here: bool = True, processes: int = 1) -> None:
    """Check that a run can start, before its folder is made, and prepare its data.

    `here` says whether it runs on this machine: a launcher may take it to another one. `processes` is the number of
    processes that `torchrun` started, this one among them.

    Raises:
        ConfigError: settings that do not fit each other, the vocabulary or this machine.
        DataError: a text is missing, unreadable or too short.
        DriftError, RunFolderError: `run_dir` holds another run.
    """
    refuse_secrets(config_to_dict(config))
    device, all_processes = resolve_device(config.train.device), max(config.train.processes, processes)
    if config.train.auto_micro_batch:
        batch_divisors(config.train, all_processes)
    else:
        config.train.share(all_processes)
    if config.train.cuda_graphs and processes > 1:
        raise ConfigError(f"train.cuda_graphs=true needs one process, and {processes} were started")
    if here:
        check_gpus(processes_on_this_machine() if processes > 1 else config.train.devices, device)
        if config.train.nodes > 1 and processes == 1:
            rendezvous_endpoint(config.train)
        check_capture(config, device)
        kernels.set_mode(config.train.kernels, device)
    if counts_tokens(config) and all_processes > 1:
        raise ConfigError(f"head=kneser_ney counts in one process, got {all_processes}: set train.devices=1")
    if counts_tokens(config) and config.prior.is_on:
        raise ConfigError(f"prior={config.prior.name} needs a network, and head=kneser_ney has none: leave one out")
    check_package(config.tracking)
    check_head(config)
    if config.train.vocab_parallel:
        VocabShard.of(vocab_size_of(config.tokenizer), ProcessGroup(size=all_processes))
    if needs_grouping(config.head):
        check_group_size(config.head.group_size, vocab_size_of(config.tokenizer))
    if run_dir is not None and processes == 1:  # several processes check it together later
        RunFolder(run_dir).check_same_run(config)
    if config.init_from is not None and not (run_dir and list_checkpoints(RunFolder(run_dir).checkpoints)):
        check_source(config)
    if config.train.auto_micro_batch and run_dir is not None and (saved := saved_micro_batch(RunFolder(run_dir))):
        with_train(config, **saved).train.share(all_processes)  # the run keeps it
    check_text(RunFolder(run_dir).with_tokenizer(config) if run_dir is not None else config)


def check_text(config: Config) -> None:
    """Prepare the data, and raise a DataError if there is not one window of training text, also beside a prior."""
    corpus = prepare_data(config.data, config.tokenizer)
    train, block_size = corpus.train, config.model.block_size
    if config.prior.is_on and train.target_tokens < 2 * block_size:  # of a longer one it keeps less than half aside
        train = counted_text(train, config.prior, build_tokenizer(config.tokenizer, config.data))
    try:
        TrainBatches(train.tokens(), block_size, config.train.micro_batch_size, config.seed)
    except DataError as error:
        if (aside := corpus.train.target_tokens - train.target_tokens) == 0:
            raise
        raise DataError(f"{error} (prior.held_out_tokens keeps {aside} tokens of it aside)") from error


def run_training(config: Config, run_dir: Path, processes: int = 1) -> dict[str, Any]:
    """Train here, or start the processes of the config if only one was started, and return the result of the run."""
    if config.train.processes > 1 and processes == 1:
        return launch(config, run_dir)
    return train(config, run_dir)


def launch(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train with `train.devices` processes on each of `train.nodes` machines, and return the result of the run.

    Raises:
        ConfigError: this machine has fewer devices, or there are fewer machines.
        GvcError: raised by the training, or a process was lost more often than `train.max_restarts` allows.
        KeyboardInterrupt, SystemExit: the user stopped the run. Its state was saved before.
    """
    folder = RunFolder(run_dir)
    folder.check_same_run(config)
    result = folder.read_result()
    if result is not None and result["state"] == COMPLETE:
        return result
    check_gpus(config.train.devices, resolve_device(config.train.device))
    run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gvc-") as scratch, signal_handlers(HANDLED):  # torch replaces them
        write_json(Path(scratch) / JOB, config_to_dict(config))  # the run folder may belong to another launcher
        if sys.stderr.isatty():  # the first of them shows the next line, after some seconds
            say(f"starting {config.train.devices} processes")
        outcome = start_processes(config.train, run_dir, Path(scratch))
    if "error" in outcome:
        error = error_from(outcome["error"])
        if not isinstance(error, RunFolderError | DriftError):  # then the folder belongs to another run
            with contextlib.suppress(OSError):
                folder.write_failure(str(error))
        raise error
    if "stopped" in outcome:
        if outcome["stopped"] == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        raise SystemExit(outcome["stopped"])
    return outcome["result"]


def start_processes(train: TrainConfig, run_dir: Path, scratch: Path) -> dict[str, Any]:
    """Start the processes, wait for them, and return their outcome: "result", "error" or "stopped" (`worker`)."""
    words = ["-m", "grouped_lm.jobs.worker", str(run_dir.absolute()), str(os.getpid()), str(scratch)]
    stopped: int | None = None
    failure: ChildFailedError | None = None
    try:
        elastic_launch(launch_config(train, run_dir), sys.executable)(*words)
    except SignalException as signalled:
        stopped = EXIT_INTERRUPTED if signalled.sigval == signal.SIGINT else EXIT_PREEMPTED
    except RendezvousError as error:
        raise GvcError(
            f"not all of {train.nodes} machines (train.nodes) met at {rendezvous_endpoint(train)[1]} "
            f"({type(error).__name__}): see what gvc printed on the others and whether they reach that address; "
            "the same command on all of them continues the run"
        ) from error
    except ChildFailedError as error:
        failure = error
    outcome = read_json_dict(scratch / OUTCOME) or {}
    if "error" in outcome:  # after a signal, too: the last save may have failed
        return outcome
    if failure is not None:  # a process was lost after the last allowed restart
        rank, first = failure.get_first_failure()
        how = first.exitcode if first.exitcode >= 0 else f"signal {-first.exitcode} ({first.signal_name()})"
        lost = GvcError(
            f"process {rank} of {train.processes} ended with {how}, after {train.max_restarts} restarts (train."
            f"max_restarts); the output of the processes is in {run_dir / LOGS}; to continue: "
            f"{RunFolder(run_dir).resume_command}"
        )
        return {"error": describe_error(lost)}
    return outcome if stopped is None else {"stopped": stopped}


def check_gpus(processes: int, device: torch.device) -> None:
    """Raise a ConfigError for more processes on this machine than it has GPUs. Any number can share a CPU."""
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(
            f"train.devices={processes}, but torch sees {torch.cuda.device_count()} CUDA devices here: "
            "take as many, or train.device=cpu"
        )


def launch_config(train: TrainConfig, run_dir: Path) -> LaunchConfig:
    """Return the settings of torch's launcher: how many processes, and how they find each other."""
    if not os.environ.get("GVC_DEBUG"):  # its own log says in ten lines what one of our errors says
        for name in [*logging.Logger.manager.loggerDict]:
            if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
                logging.getLogger(name).setLevel(logging.CRITICAL)
    run_id, endpoint = rendezvous_endpoint(train)
    return LaunchConfig(
        min_nodes=train.nodes,
        max_nodes=train.nodes,
        nproc_per_node=train.devices,
        run_id=run_id,
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


def rendezvous_endpoint(train: TrainConfig) -> tuple[str, str]:
    """Return the name of this launch and the HOST:PORT where its machines find each other.

    In a SLURM job the host is the job's first machine. The port follows from the job's number, so that two jobs can
    share a machine. Several machines need a SLURM job of as many.
    """
    if train.nodes == 1:
        return f"gvc-{os.getpid()}", "localhost:0"
    environment = os.environ
    nodes = environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES")
    if nodes != str(train.nodes):
        here = f"this SLURM job has {nodes}" if nodes else "this is no SLURM job"
        raise ConfigError(
            f"train.nodes={train.nodes} needs a SLURM job with as many machines and one task on each ({here}); "
            "elsewhere start gvc train with torchrun on every machine and leave train.nodes out"
        )
    job, restarts = environment["SLURM_JOB_ID"], environment.get("SLURM_RESTART_COUNT", "0")
    return f"gvc-{job}-{restarts}", f"{first_host(environment['SLURM_JOB_NODELIST'])}:{20_000 + int(job) % 20_000}"


def first_host(nodelist: str) -> str:
    """Return the first machine of a SLURM list such as gpu[03-05,9], which SLURM's own command reads."""
    command = ["scontrol", "show", "hostnames", nodelist]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise GvcError(
            f"scontrol cannot say which machines {nodelist} is ({error}): is SLURM's client installed?"
        ) from error
