"""The whole state of a training run as bytes: weights, optimizer, random generators and counters.

The bytes do not depend on the number of processes. Shards are gathered in the first process, which writes them, and cut
again when they are read. Several processes add only the random generators of the others (`rng/RANK/...`).
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
from grouped_lm.optim.ema import EMA
from grouped_lm.optim.used_rows import used_rows

TENSORS, STATE = "state.safetensors", "state.json"


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name. A tied weight has only its first name."""
    state: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        state.setdefault(id(tensor), (name, tensor))
    return dict(state.values())


def pack(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, bytes]:
    """Return the files of a checkpoint in the first process, and no files in the others. All processes call this.

    The model is not compiled, and the optimizer has per-parameter tensors. `state` is written into `state.json`.
    """
    tensors = {f"model/{name}": tensor.detach() for name, tensor in named_state(model).items()}
    in_rows = used_rows(model)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optim/{name}/{key}"] = in_rows[parameter].spread(value) if parameter in in_rows else value
    gathered = {}
    for name, tensor in tensors.items():  # one at a time, so that no device holds more than one in full
        full = full_tensor(tensor)
        if process_group.is_first:
            gathered[name] = full.cpu().contiguous()
    gathered |= _random_states(process_group)
    if not process_group.is_first:
        return {}
    return {TENSORS: save_tensors(gathered), STATE: json.dumps(state, indent=2, sort_keys=True).encode()}


def _random_states(process_group: ProcessGroup) -> dict[str, Tensor]:
    """Return the state of every random generator: `rng/cpu` of the first process, `rng/RANK/cpu` of the others."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return {
        f"rng/{rank}/{kind}" if rank else f"rng/{kind}": state
        for kind, own_state in own.items()
        for rank, state in enumerate(process_group.gather(own_state))
    }


def head_buffers(files: dict[str, bytes]) -> dict[str, Tensor]:
    """Return the tensors of the head in a checkpoint, by the head's own names. Its grouping is one of them."""
    prefix, (tensors, _) = "model/head.", _read(files)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def finite_weights(model: nn.Module) -> bool:
    """Return whether all weights of this process are finite."""
    return all(bool(torch.isfinite(local_tensor(parameter)).all()) for parameter in model.parameters())


def unpack_model(files: dict[str, bytes], model: nn.Module) -> dict[str, Any]:
    """Load weights, or their average, and grouping of a checkpoint for evaluation, and return its `state.json`."""
    tensors, state = _read(files)
    expected = named_state(model)
    _check_weights(tensors, expected)
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors.get(f"optim/{name}/{EMA}", tensors[f"model/{name}"]))
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
    """Load a checkpoint into model, optimizer and random generators, to continue, and return its `state.json`.

    Args:
        files: of the checkpoint, verified. Only the first process needs them.
        model: new, from the run's config.
        optimizer: new, from the run's config.
        accept: called with `state.json` before anything is loaded. It raises if the checkpoint is of another run.
        process_group: the processes. Another number of processes may have saved.
        seed: of the run, for the random generators of processes that the checkpoint does not have.

    Raises:
        CheckpointError: names, shapes or the grouping are not the model's.
    """
    tensors: dict[str, Tensor] = {}
    expected = named_state(model)

    def read() -> tuple[dict[str, Any], dict[str, tuple[torch.dtype, list[int]]], dict[str, Tensor]]:
        saved, state = _read(files)
        accept(state)
        for name, buffer in model.named_buffers():
            value = saved.get(f"model/{name}")
            if value is not None and (value.dtype != buffer.dtype or not torch.equal(value, buffer.cpu())):
                raise CheckpointError(f"{name} in the checkpoint is another grouping than this config's")
        _check_weights(saved, expected)
        tensors.update(saved)
        forms = {key: (value.dtype, list(value.shape)) for key, value in saved.items() if key.startswith("optim/")}
        return state, forms, {key: value for key, value in saved.items() if key.startswith("rng/")}

    state, forms, random_states = process_group.on_first(read)
    with torch.no_grad():
        for name, target in expected.items():
            process_group.broadcast(target, tensors.get(f"model/{name}"))
        for name, parameter in model.named_parameters():
            prefix = f"optim/{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(prefix): _optimizer_tensor(parameter, *form, tensors.get(key), process_group)
                for key, form in forms.items()
                if key.startswith(prefix)
            }
        for parameter, rows in used_rows(model).items():
            rows.after_load()
            optimizer.state[parameter] = {key: rows.pick(value) for key, value in optimizer.state[parameter].items()}
    if process_group.size > 1:
        process_group.seed_generator(seed, state["progress"]["step"])
    _restore_random_states(random_states, process_group.rank)
    return state


def _optimizer_tensor(
    parameter: Tensor, dtype: torch.dtype, shape: list[int], source: Tensor | None, process_group: ProcessGroup
) -> Tensor:
    """Return a tensor of the optimizer: in shards like its parameter, or whole if it has another shape."""
    if is_sharded(parameter) and list(parameter.shape) == shape:
        target = torch.empty_like(parameter, dtype=dtype)
    else:
        target = torch.empty(shape, dtype=dtype, device=parameter.device)
    process_group.broadcast(target, source)
    return target


def _restore_random_states(states: dict[str, Tensor], rank: int) -> None:
    """Set the random generators of the process with this rank. One that was not saved keeps its state."""
    cpu, cuda = (f"rng/{rank}/{kind}" if rank else f"rng/{kind}" for kind in ("cpu", "cuda"))
    try:
        if rank == 0 or cpu in states:
            torch.set_rng_state(states[cpu])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random generator cannot be restored: {error}") from error
    if cuda in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[cuda])


def _read(files: dict[str, bytes]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, state = load_tensors(files[TENSORS]), json.loads(files[STATE])
    except (KeyError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint's files cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{STATE} of the checkpoint is not an object")
    return tensors, state


def _check_weights(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    saved = {key.removeprefix("model/"): value for key, value in tensors.items() if key.startswith("model/")}
    if saved.keys() != expected.keys():
        different = sorted(saved.keys() ^ expected.keys())
        raise CheckpointError(f"the checkpoint's weights are not this model's: {', '.join(different[:5])}")
    for name, target in expected.items():
        if saved[name].shape != target.shape or saved[name].dtype != target.dtype:
            raise CheckpointError(
                f"{name} is {tuple(saved[name].shape)} {saved[name].dtype} in the checkpoint, "
                f"{tuple(target.shape)} {target.dtype} in the model"
            )
