"""The whole state of a training run as bytes, and back: weights, optimizer, random generators, counters.

The bytes are those of one process, however many train: shards are gathered for the first one, which writes, and cut
again where they are read. What several processes add are the random generators of the others (`rng/RANK/...`).
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from grouped_lm.distributed.process_group import SINGLE_PROCESS, ProcessGroup, full_tensor, is_sharded, local_tensor
from grouped_lm.errors import CheckpointError
from grouped_lm.heads import Head

TENSORS, STATE = "state.safetensors", "state.json"


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name; a tied weight stands once, under its first name."""
    state, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def pack(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, bytes]:
    """Return the files of a checkpoint; nothing in processes that do not write it.

    Args:
        model: an uncompiled module.
        optimizer: with per-parameter tensors, such as AdamW's.
        state: JSON-able counters and fingerprints.
        process_group: the processes, all of which have to ask.
    """
    tensors = {f"model/{name}": tensor.detach() for name, tensor in named_state(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optim/{name}/{key}"] = value
    kept = {}
    for name, tensor in tensors.items():  # one at a time, so that no device holds more than one in full
        full = full_tensor(tensor)
        if process_group.is_first:
            kept[name] = full.cpu().contiguous()
    kept |= _pack_rng(process_group)
    if not process_group.is_first:
        return {}
    return {TENSORS: save_tensors(kept), STATE: json.dumps(state, indent=2, sort_keys=True).encode()}


def _pack_rng(process_group: ProcessGroup) -> dict[str, Tensor]:
    """Return the random state of every process; that of the first under the names that it has alone."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    named = {}
    for kind, own in found.items():
        for rank, state in enumerate(process_group.gather(own)):
            named[f"rng/{rank}/{kind}" if rank else f"rng/{kind}"] = state
    return named


def head_buffers(files: dict[str, bytes]) -> dict[str, Tensor]:
    """Return what a checkpoint knows of the head, by the head's own names: its grouping, and other buffers.

    Raises:
        CheckpointError: the files cannot be read.
    """
    prefix, (tensors, _) = "model/head.", _read(files)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def finite_weights(model: nn.Module) -> bool:
    """Return whether every weight is a finite number, of shards those that lie here."""
    return all(bool(torch.isfinite(local_tensor(parameter)).all()) for parameter in model.parameters())


def unpack_model(files: dict[str, bytes], model: nn.Module) -> dict[str, Any]:
    """Load weights and grouping of a checkpoint into `model`, for use, and return its counters.

    Raises:
        CheckpointError: names or shapes are not the model's.
    """
    tensors, state = _read(files)
    expected = named_state(model)
    _check_weights(tensors, expected)
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors[f"model/{name}"])
    for module in model.modules():
        if isinstance(module, Head):
            module.after_load()
    return state


def unpack(
    files: dict[str, bytes],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accept: Callable[[dict[str, Any]], None] = lambda state: None,
    process_group: ProcessGroup = SINGLE_PROCESS,
    seed: int = 0,
) -> dict[str, Any]:
    """Load a checkpoint into model, optimizer and random generators, to go on, and return its counters.

    Args:
        files: of the checkpoint, verified; looked at in the first process alone.
        model, optimizer: built from the run's config.
        accept: looks at the counters before anything is loaded, and raises if they belong to another run.
        process_group: the processes, of any number, whatever the number that saved it.
        seed: the run's, for the random numbers of processes that have saved none.

    Raises:
        CheckpointError: names, shapes or the grouping are not the model's.
    """
    tensors: dict[str, Tensor] = {}
    expected = named_state(model)

    def look() -> dict[str, Any]:
        found, state = _read(files)
        accept(state)
        for name, buffer in model.named_buffers():
            saved = found.get(f"model/{name}")
            if saved is not None and (saved.dtype != buffer.dtype or not torch.equal(saved, buffer.cpu())):
                raise CheckpointError(f"{name} in the checkpoint is another grouping than this config's")
        _check_weights(found, expected)
        tensors.update(found)
        moments = {key: [str(value.dtype), *value.shape] for key, value in found.items() if key.startswith("optim/")}
        return {"state": state, "moments": moments, "rng": [key for key in found if key.startswith("rng/")]}

    told = process_group.on_first(look)
    with torch.no_grad():
        for name, target in expected.items():
            process_group.broadcast(target, tensors.get(f"model/{name}"))
        for name, parameter in model.named_parameters():
            prefix = f"optim/{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(prefix): _moment(parameter, form, tensors.get(key), process_group)
                for key, form in told["moments"].items()
                if key.startswith(prefix)
            }
    _restore_rng(tensors, told["rng"], process_group, seed, told["state"])
    return told["state"]


def _moment(parameter: Tensor, form: list[Any], source: Tensor | None, process_group: ProcessGroup) -> Tensor:
    """Return what the optimizer keeps of a parameter: cut as the parameter is, or whole where it has another shape."""
    dtype, *shape = form
    kind = getattr(torch, dtype.removeprefix("torch."))
    if is_sharded(parameter) and list(parameter.shape) == shape:
        made = torch.empty_like(parameter, dtype=kind)
    else:
        made = torch.empty(shape, dtype=kind, device=parameter.device)
    process_group.broadcast(made, source)
    return made


def _restore_rng(
    tensors: dict[str, Tensor], names: list[str], process_group: ProcessGroup, seed: int, state: dict[str, Any]
) -> None:
    try:
        if process_group.is_first:
            torch.set_rng_state(tensors["rng/cpu"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random generator cannot be restored: {error}") from error
    if process_group.is_first and "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    if process_group.size > 1:
        _restore_others(tensors, names, process_group, seed, state["progress"]["step"])


def _restore_others(
    tensors: dict[str, Tensor], names: list[str], process_group: ProcessGroup, seed: int, step: int
) -> None:
    """Give the processes behind the first their random states, or fresh ones where there were fewer processes."""
    process_group.seed_generator(seed, step)
    for kind, own, put in (
        ("cpu", torch.get_rng_state(), torch.set_rng_state),
        *([("cuda", torch.cuda.get_rng_state(), torch.cuda.set_rng_state)] if torch.cuda.is_available() else []),
    ):
        for rank in range(1, process_group.size):
            name = f"rng/{rank}/{kind}"
            if name in names:
                state = torch.empty_like(own)
                process_group.broadcast(state, tensors.get(name))
                if rank == process_group.rank:
                    put(state)


def _read(files: dict[str, bytes]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, state = load_tensors(files[TENSORS]), json.loads(files[STATE])
    except (KeyError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint's files cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{STATE} of the checkpoint is no object")
    return tensors, state


def _check_weights(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    saved = {key.removeprefix("model/"): value for key, value in tensors.items() if key.startswith("model/")}
    if saved.keys() != expected.keys():
        odd = sorted(saved.keys() ^ expected.keys())
        raise CheckpointError(f"the checkpoint's weights are not this model's: {', '.join(odd[:5])}")
    for name, target in expected.items():
        if saved[name].shape != target.shape or saved[name].dtype != target.dtype:
            raise CheckpointError(
                f"{name} is {tuple(saved[name].shape)} {saved[name].dtype} in the checkpoint, "
                f"{tuple(target.shape)} {target.dtype} in the model"
            )
