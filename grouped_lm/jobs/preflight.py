"""The checks of a run before anything of it exists."""

from pathlib import Path

from grouped_lm.config import Config, config_to_dict
from grouped_lm.data import prepare_data
from grouped_lm.data.loader import TrainBatches
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.distributed.process_group import ProcessGroup, processes_on_this_machine
from grouped_lm.distributed.vocab_parallel import VocabShard
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import check_group_size
from grouped_lm.heads import needs_grouping
from grouped_lm.jobs.launch import check_gpus, rendezvous_endpoint
from grouped_lm.models.lm import check_head
from grouped_lm.runs.folder import RunFolder
from grouped_lm.system.console import PrepareDisplay
from grouped_lm.system.runtime import compile_mode, resolve_device
from grouped_lm.system.secret_values import refuse_secrets


def preflight(config: Config, run_dir: Path | None = None, here: bool = True, processes: int = 1) -> None:
    """Check that a run can start, before its folder is made, and prepare its data.

    Args:
        config: of the run.
        run_dir: its folder, if it is known.
        here: whether it runs on this machine; a launcher may take it to another one.
        processes: number of processes that `torchrun` started, this one among them.

    Raises:
        ConfigError: settings that do not fit each other, the vocabulary or this machine.
        DataError: a text is missing, unreadable or too short.
        DriftError: `run_dir` holds a run with another config.
        RunFolderError: `run_dir` holds something else than this run.
    """
    refuse_secrets(config_to_dict(config))
    device, all_processes = resolve_device(config.train.device), max(config.train.processes, processes)
    config.train.share(all_processes)
    if config.train.cuda_graphs and processes > 1:
        raise ConfigError(f"train.cuda_graphs=true needs one process, and {processes} were started")
    if here:
        check_gpus(processes_on_this_machine() if processes > 1 else config.train.devices, device)
        if config.train.nodes > 1 and processes == 1:
            rendezvous_endpoint(config.train)
        compile_mode(config.train, device)
    check_head(config)
    if config.train.vocab_parallel:
        VocabShard.of(vocab_size_of(config.tokenizer), ProcessGroup(size=all_processes))
    if needs_grouping(config.head):
        check_group_size(config.head.group_size, vocab_size_of(config.tokenizer))
    if run_dir is not None and processes == 1:  # several processes check it together later
        RunFolder(run_dir).check_same_run(config)
    with PrepareDisplay() as display:
        corpus = prepare_data(config.data, config.tokenizer, display.progress)
    TrainBatches(corpus.train.tokens(), config.model.block_size, config.train.micro_batch_size, config.seed)
