"""What a run is refused for before anything of it exists."""

from pathlib import Path

from grouped_lm.config import Config, config_to_dict
from grouped_lm.data import prepare_data
from grouped_lm.data.loader import TrainBatches
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.distributed.process_group import ProcessGroup, processes_on_this_machine, rank_and_size
from grouped_lm.distributed.vocab_parallel import VocabShard
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import check_group_size
from grouped_lm.heads import needs_grouping
from grouped_lm.jobs.launch import check_gpus, rendezvous_endpoint
from grouped_lm.models.build import check_head
from grouped_lm.runs.folder import RunFolder
from grouped_lm.system.console import PrepareDisplay
from grouped_lm.system.runtime import compile_mode, resolve_device
from grouped_lm.system.secret_values import refuse_secrets


def preflight(config: Config, run_dir: Path | None = None, here: bool = True) -> None:
    """Refuse what cannot run, before any folder is made; prepare the data on the way.

    Args:
        config: the run.
        run_dir: its folder, where it is known.
        here: it will run on this machine, and not where a launcher takes it.

    Raises:
        ConfigError: a group size above V, devices or machines that are not there, a batch that they cannot share, CUDA
            graphs without a GPU, a head tied to nothing or without the losses asked for, too few rows
            of V for all processes, a file that data.train and data.valid both read.
        DataError: text that is missing, unreadable or too short.
        DriftError, RunFolderError: `run_dir` already holds something else.
    """
    refuse_secrets(config_to_dict(config))
    device, started = resolve_device(config.train.device), rank_and_size()[1]
    config.train.share(max(config.train.processes, started))
    if config.train.cuda_graphs and started > 1:
        raise ConfigError(f"train.cuda_graphs=true needs one process, and {started} were started")
    if here:
        check_gpus(processes_on_this_machine() if started > 1 else config.train.devices, device)
        if config.train.nodes > 1 and started == 1:
            rendezvous_endpoint(config.train)
        compile_mode(config.train, device)
    check_head(config)
    if config.train.vocab_parallel:
        VocabShard.of(vocab_size_of(config.tokenizer), ProcessGroup(size=max(config.train.processes, started)))
    if needs_grouping(config.head):
        check_group_size(config.head.group_size, vocab_size_of(config.tokenizer))
    if run_dir is not None and started == 1:  # several ask together, who know how often they were restarted
        RunFolder(run_dir).check_same_run(config)
    with PrepareDisplay() as display:
        corpus = prepare_data(config.data, config.tokenizer, display.progress)
    TrainBatches(corpus.train.tokens(), config.model.block_size, config.train.micro_batch_size, config.seed)
