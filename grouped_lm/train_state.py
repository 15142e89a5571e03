"""The whole state of a training run as bytes, and back: weights, optimizer, random generators, counters."""

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

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


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a checkpoint.

    Args:
        model: an uncompiled module.
        optimizer: with per-parameter tensors, such as AdamW's.
        state: JSON-able counters and fingerprints.
    """
    tensors = {f"model/{name}": tensor.detach() for name, tensor in named_state(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optim/{name}/{key}"] = value
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return {TENSORS: save_tensors(cpu), STATE: json.dumps(state, indent=2, sort_keys=True).encode()}


def head_buffers(files: dict[str, bytes]) -> dict[str, Tensor]:
    """Return what a checkpoint knows of the head, by the head's own names: its grouping, and other buffers.

    Raises:
        CheckpointError: the files cannot be read.
    """
    prefix, (tensors, _) = "model/head.", _read(files)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def finite_weights(model: nn.Module) -> bool:
    """Return whether every weight is a finite number."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def unpack_model(files: dict[str, bytes], model: nn.Module) -> dict[str, Any]:
    """Load weights and grouping of a checkpoint into `model`, for use, and return its counters.

    Raises:
        CheckpointError: names or shapes are not the model's.
    """
    tensors, state = _read(files)
    _copy_weights(tensors, model)
    for module in model.modules():
        if isinstance(module, Head):
            module.after_load()
    return state


def unpack(
    files: dict[str, bytes],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accept: Callable[[dict[str, Any]], None] = lambda state: None,
) -> dict[str, Any]:
    """Load a checkpoint into model, optimizer and random generators, to go on, and return its counters.

    Args:
        files: of the checkpoint, verified.
        model, optimizer: built from the run's config.
        accept: looks at the counters before anything is loaded, and raises if they belong to another run.

    Raises:
        CheckpointError: names, shapes or the grouping are not the model's.
    """
    tensors, state = _read(files)
    accept(state)
    for name, buffer in model.named_buffers():
        saved = tensors.get(f"model/{name}")
        if saved is not None and not torch.equal(saved, buffer.cpu()):
            raise CheckpointError(f"{name} in the checkpoint is another grouping than this config's")
    _copy_weights(tensors, model)
    for name, parameter in model.named_parameters():
        prefix = f"optim/{name}/"
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in own.items()}
    _restore_rng(tensors)
    return state


def _restore_rng(tensors: dict[str, Tensor]) -> None:
    try:
        torch.set_rng_state(tensors["rng/cpu"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random generator cannot be restored: {error}") from error
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])


def _read(files: dict[str, bytes]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, state = load_tensors(files[TENSORS]), json.loads(files[STATE])
    except (KeyError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint's files cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{STATE} of the checkpoint is no object")
    return tensors, state


def _copy_weights(tensors: dict[str, Tensor], model: nn.Module) -> None:
    expected = named_state(model)
    saved = {key.removeprefix("model/"): value for key, value in tensors.items() if key.startswith("model/")}
    if saved.keys() != expected.keys():
        odd = sorted(saved.keys() ^ expected.keys())
        raise CheckpointError(f"the checkpoint's weights are not this model's: {', '.join(odd[:5])}")
    with torch.no_grad():
        for name, target in expected.items():
            if saved[name].shape != target.shape or saved[name].dtype != target.dtype:
                raise CheckpointError(
                    f"{name} is {tuple(saved[name].shape)} {saved[name].dtype} in the checkpoint, "
                    f"{tuple(target.shape)} {target.dtype} in the model"
                )
            target.copy_(saved[name])
