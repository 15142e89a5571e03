"""Before the loop: the process, the run folder and its lock, and what a run writes about itself or its failure."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from grouped_lm.config import Config
from grouped_lm.data import Corpus, prepare_data
from grouped_lm.data.text import EOT_TEXT
from grouped_lm.data.tokenizers.bpe import BPETokenizer
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.distributed.process_group import ProcessGroup, join_process_group
from grouped_lm.errors import DiskError, GvcError
from grouped_lm.heads import GroupedTokens, Head, needs_grouping
from grouped_lm.heads.losses import kernels
from grouped_lm.heads.losses.functional import set_static_sizes
from grouped_lm.measure.memory import GIB
from grouped_lm.models.lm import LanguageModel, build_lm
from grouped_lm.plan.fake_step import with_train
from grouped_lm.plan.memory_check import available_bytes, check_memory, explain_out_of_memory, fit_micro_batch
from grouped_lm.prior.store import counted_text
from grouped_lm.runs.checkpoint import list_checkpoints, load_latest
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.init_from import read_start
from grouped_lm.runs.train_state import STATE, head_buffers, unpack_model
from grouped_lm.system.files import write_json
from grouped_lm.system.phases import phase, say
from grouped_lm.system.runtime import keep_freed_memory, resolve_device, set_threads
from grouped_lm.train.checkpoints import MICRO_BATCH, describe_origin, may_continue_mirror


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
        contextlib.ExitStack() as stack,
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
        known: GvcError | None
        if isinstance(error, GvcError):
            known = error
        elif isinstance(error, OSError):
            to_do = folder.resume_command if folder.config.exists() else "run the same command again"
            known = DiskError(
                f"{folder.path} cannot be written ({error.strerror or error}); the checkpoints there are untouched: "
                f"make room, then {to_do}"
            )
        else:
            known = explain_out_of_memory(error, config, resolve_device(config.train.device), process_group.size)
        if known is not None:
            process_group.publish_error(known)
        # A lost process of several is not the end of the run: the launcher starts all of them again.
        if process_group.size == 1 or (process_group.is_first and known is not None):
            with contextlib.suppress(OSError):  # a full disk takes no result either
                folder.write_failure(str(known or error))
        if known is None or known is error:
            raise
        raise known from error


def set_up_process(
    config: Config, folder: RunFolder, process_group: ProcessGroup
) -> tuple[Config, torch.device, int | None]:
    """Set threads, allocator and random seed, and check that the model fits into memory.

    Returns:
        The config with the micro-batch size that `train.auto_micro_batch` chose, the device, and the peak of a step in
        bytes that this choice was based on (None without one).
    """
    train = config.train
    device = process_group.device(resolve_device(train.device))
    kernels.set_mode(train.kernels, device)
    set_static_sizes(train.cuda_graphs)
    set_threads(train.threads, process_group.local_size)
    keep_freed_memory()
    predicted = None
    if train.auto_micro_batch:
        config, predicted = process_group.on_first(choose_micro_batch, config, folder, device, process_group)
    torch.manual_seed(config.seed)
    if not train.auto_micro_batch and (process_group.size == 1 or train.strategy == "ddp"):
        with phase("checking memory"):
            process_group.on_first(check_memory, config, device, process_group.size, process_group.local_size)
    return config, device, predicted


def choose_micro_batch(
    config: Config, folder: RunFolder, device: torch.device, process_group: ProcessGroup
) -> tuple[Config, int | None]:
    """Return the config with the micro-batches that the run began with, or else with the largest that fit."""
    saved = saved_micro_batch(folder) or mirrored_micro_batch(config, folder, process_group.restarts)
    if saved is not None:
        return with_train(config, **saved), None
    available = available_bytes(device, process_group.local_size)
    with phase("finding the largest micro-batch that fits"):
        config, predicted = fit_micro_batch(config, available, process_group.size)
    size, steps = (getattr(config.train, key) for key in MICRO_BATCH)
    needs = "" if predicted is None else f"; a step needs {predicted / GIB:.3f} GiB"
    free = "" if available is None else f", {available / GIB:,.2f} GiB are free"
    say(f"gvc: auto: train.micro_batch_size={size} train.grad_accum_steps={steps}{needs}{free}")
    return config, predicted


def saved_micro_batch(folder: RunFolder) -> dict[str, int] | None:
    """Return the values of `MICRO_BATCH` of the run in a folder, None if it has no checkpoint."""
    if not (list_checkpoints(folder.checkpoints) and folder.config.exists()):
        return None
    saved = folder.read_config()["train"]
    return {key: saved[key] for key in MICRO_BATCH}


def mirrored_micro_batch(config: Config, folder: RunFolder, restarts: int = 0) -> dict[str, int] | None:
    """Return the values of `MICRO_BATCH` in the mirror's newest checkpoint, None if the run begins anew."""
    if not may_continue_mirror(config, restarts) or list_checkpoints(folder.checkpoints):
        return None
    identity = describe_origin(config, prepare_corpus(folder.with_tokenizer(config)), {})["identity"]
    mirror = folder.mirror(config, identity)
    newest = None if mirror is None else load_latest(mirror, quarantine=False)
    saved: dict[str, int] | None = None if newest is None else json.loads(newest[1][STATE]).get("micro_batch")
    return saved


def prepare_corpus(config: Config) -> Corpus:
    """Return the token files of both splits; with a prior without the text that it keeps aside."""
    corpus = prepare_data(config.data, config.tokenizer)
    if config.prior.is_on:
        corpus.train = counted_text(corpus.train, config.prior, build_tokenizer(config.tokenizer, config.data))
    return corpus


def build_model(config: Config, corpus: Corpus, folder: RunFolder) -> LanguageModel:
    """Return the model at the start of the run: new, or with the weights and grouping of `config.init_from`."""
    if config.init_from is None:
        groups = f" with groups by {config.grouping.name}" if needs_grouping(config.head) else ""
        with phase(f"building the {config.head.name} head{groups}"):
            return build_lm(config, corpus.train.counts, corpus.train.tokens)
    with phase(f"reading the weights of {config.init_from}"):
        files = read_start(config, folder)
        model = build_lm(config, corpus.train.counts, saved=head_buffers(files))
        unpack_model(files, model)
    return model


def write_tokens(folder: RunFolder, config: Config, head: Head) -> None:
    """Write the tokenizer, if it was trained on this run's text, and a description of the groups, if there are any."""
    config = folder.with_tokenizer(config)
    tokenizer = build_tokenizer(config.tokenizer, config.data)
    if isinstance(tokenizer, BPETokenizer):
        tokenizer.save(folder.tokenizer)
    if isinstance(head, GroupedTokens):
        write_json(folder.grouping, head.describe_groups({EOT_TEXT: tokenizer.eot_id}))
