"""Before the loop: the process, the run folder and its lock, and what a run writes about itself or its failure."""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from grouped_lm.config import Config
from grouped_lm.data.text import EOT_TEXT
from grouped_lm.data.tokenizers.bpe import BPETokenizer
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.distributed.process_group import ProcessGroup, join_process_group
from grouped_lm.errors import DiskError, GvcError
from grouped_lm.heads import GroupedTokens, Head
from grouped_lm.models.lm import LanguageModel, count_params
from grouped_lm.plan.memory_check import check_memory, explain_out_of_memory
from grouped_lm.runs.folder import RunFolder, failed
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import keep_freed_memory, resolve_device, set_threads


@contextlib.contextmanager
def lock_folder(config: Config, run_dir: Path) -> Iterator[tuple[RunFolder, ProcessGroup]]:
    """Join the process group, lock the run folder, and give both.

    Raises:
        BusyError: another process trains in the folder.
        DriftError, RunFolderError: the folder holds another run, or any run where train.resume=never.
    """
    device = resolve_device(config.train.device)
    with (
        join_process_group(config.train.processes, device, config.train.hang_minutes) as process_group,
        ExitStack() as stack,
    ):
        path = str(run_dir.absolute() if process_group.size > 1 else run_dir)
        folder = RunFolder(Path(process_group.on_first(lambda: path)))

        def lock() -> None:
            stack.enter_context(folder.lock())
            folder.check_same_run(config, process_group.restarts)

        process_group.on_first(lock)
        yield folder, process_group


@contextlib.contextmanager
def record_failure(config: Config, folder: RunFolder, process_group: ProcessGroup) -> Iterator[None]:
    """Write an error of the enclosed training into result.json, and raise it as a `GvcError` where it is known."""
    try:
        yield
    except Exception as error:
        known = error if isinstance(error, GvcError) else explain(error, config, folder, process_group)
        if known is not None:
            process_group.publish_error(known)
        # A lost process of several is not the end of the run: the launcher starts all of them again.
        if process_group.size == 1 or (process_group.is_first and known is not None):
            with contextlib.suppress(OSError):  # a full disk takes no result either
                write_json(folder.result, failed(str(known or error)))
        if known is None or known is error:
            raise
        raise known from error


def record_hang(folder: RunFolder, is_first: bool, reason: str) -> None:
    """Write the reason of a hang into result.json, in the first process."""
    if is_first:
        write_json(folder.result, failed(reason))


def explain(error: Exception, config: Config, folder: RunFolder, process_group: ProcessGroup) -> GvcError | None:
    """Return the one-line error for a lack of memory or disk space, and None for any other error."""
    if isinstance(error, OSError):
        return DiskError(
            f"{folder.path} cannot be written ({error.strerror or error}); the checkpoints there are untouched: "
            "make room and run the same command again"
        )
    return explain_out_of_memory(error, config, resolve_device(config.train.device), process_group.size)


def set_up_process(config: Config, process_group: ProcessGroup) -> torch.device:
    """Set threads, allocator and random seed, check that the model fits into memory, and return the device.

    Raises:
        MemoryShortError: the model does not fit.
    """
    train = config.train
    device = process_group.device(resolve_device(train.device))
    set_threads(train.threads, process_group.local_size)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    if process_group.size == 1 or train.strategy == "ddp":
        process_group.on_first(check_memory, config, device, process_group.size, process_group.local_size)
    return device


def write_tokens(folder: RunFolder, config: Config, head: Head) -> None:
    """Write the tokenizer, if it was trained on this run's text, and a description of the groups, if there are any."""
    tokenizer = build_tokenizer(config.tokenizer, config.data)
    if isinstance(tokenizer, BPETokenizer):
        tokenizer.save(folder.tokenizer)
    if isinstance(head, GroupedTokens):
        write_json(folder.grouping, head.describe_groups({EOT_TEXT: tokenizer.eot_id}))


def describe_model(config: Config, model: LanguageModel) -> dict[str, Any]:
    """Return the labels and sizes by which runs are compared."""
    head = model.head
    total, own = count_params(model)
    return {
        "model": config.model.name,
        "head": config.head.name,
        "grouping": config.grouping.name if hasattr(head, "n_group") else None,
        "group_size": getattr(head, "group_size", None),
        "n_group": getattr(head, "n_group", None),
        "data": config.data.name,
        "tokenizer": config.tokenizer.label,
        "params/total": total,
        "params/head": own,
    }
