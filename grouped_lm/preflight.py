"""What a run is refused for before anything of it exists."""

from pathlib import Path

import torch

from grouped_lm.config import Config, TrainConfig, config_to_dict
from grouped_lm.data import prepare_data
from grouped_lm.data.loader import TrainBatches
from grouped_lm.data.tokenizer import vocab_size_of
from grouped_lm.display import PrepareDisplay
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import check_group_size
from grouped_lm.heads import needs_grouping
from grouped_lm.launch import meeting_point
from grouped_lm.models.build import check_head
from grouped_lm.run_folder import RunFolder
from grouped_lm.runtime import compile_mode, resolve_device
from grouped_lm.secret_values import refuse_secrets
from grouped_lm.world import started_as


def preflight(config: Config, run_dir: Path | None = None, here: bool = True) -> None:
    """Refuse what cannot run, before any folder is made; prepare the data on the way.

    Args:
        config: the run.
        run_dir: its folder, where it is known.
        here: it will run on this machine, and not where a launcher takes it.

    Raises:
        ConfigError: a group size above V, devices or machines that are not there, a batch that they cannot share, CUDA
            graphs without a GPU, a head tied to nothing or without the losses asked for.
        DataError: text that is missing, unreadable or too short.
        DriftError, RunFolderError: `run_dir` already holds something else.
    """
    refuse_secrets(config_to_dict(config))
    device, started = resolve_device(config.train.device), started_as()[1]
    config.train.share(max(config.train.processes, started))
    if here:
        check_devices(config.train, device, started)
        compile_mode(config.train, device)
    check_head(config)
    if needs_grouping(config.head):
        check_group_size(config.head.group_size, vocab_size_of(config.tokenizer))
    if run_dir is not None and started == 1:  # several ask together, who know how often they were restarted
        RunFolder(run_dir).check_same_run(config)
    with PrepareDisplay() as display:
        corpus = prepare_data(config.data, config.tokenizer, display.progress)
    TrainBatches(corpus.train.tokens(), config.model.block_size, config.train.micro_batch_size, config.seed)


def check_devices(train: TrainConfig, device: torch.device, started: int) -> None:
    """Refuse devices and machines that are not here.

    Args:
        train: what is asked for.
        device: a CPU, which any number of processes can share, or any CUDA device.
        started: processes that `torchrun` has started already; it has found their machines.

    Raises:
        ConfigError: there are fewer.
    """
    if device.type == "cuda" and train.devices > torch.cuda.device_count():
        raise ConfigError(
            f"train.devices={train.devices}, but torch sees {torch.cuda.device_count()} CUDA devices here: "
            "take as many, or train.device=cpu"
        )
    if train.nodes > 1 and started == 1:
        meeting_point(train)
