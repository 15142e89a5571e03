"""The whole state of a training run as bytes, and back: weights, optimizer, random generators, counters."""

import json
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


def unpack(files: dict[str, bytes], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into model, optimizer and random generators, to go on, and return its counters.

    Raises:
        CheckpointError: names, shapes or the grouping are not the model's.
    """
    tensors, state = _read(files)
    for name, buffer in model.named_buffers():
        saved = tensors.get(f"model/{name}")
        if saved is not None and not torch.equal(saved, buffer.cpu()):
            raise CheckpointError(f"{name} in the checkpoint is another grouping than this config's")
    _copy_weights(tensors, model)
    for name, parameter in model.named_parameters():
        prefix = f"optim/{name}/"
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in own.items()}
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    return state


def _read(files: dict[str, bytes]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return load_tensors(files[TENSORS]), json.loads(files[STATE])
    except (KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint's files cannot be read: {error}") from error


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
