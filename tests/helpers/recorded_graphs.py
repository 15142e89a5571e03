"""CUDA graphs on a CPU: the part of `torch.cuda` that records and replays, with the rules of the real one.

Inside `graph` every operator of torch is noted with its tensors. `replay` runs the operators again and writes into the
same tensors: no Python of the step runs again, and its numbers are those of the recording. Recording has no effect, so
what it changed is put back. What a GPU refuses while it records is an error: a number read by the host, a size that
depends on one, and a tensor made from numbers of the host.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "lift_fresh", "repeat_interleave.Tensor")


class RefusedError(RuntimeError):
    """The step did something that no graph can repeat."""


def tensors_of(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class CUDAGraph:
    """The operators of a step, in order."""

    replays = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    @torch.no_grad()
    def replay(self) -> None:
        type(self).replays += 1
        for operator, args, kwargs, results in self.calls:
            for result, again in zip(results, tensors_of(operator(*args, **kwargs)), strict=True):
                if result.data_ptr() != again.data_ptr():
                    result.copy_(again)


class _Recorder(TorchDispatchMode):
    def __init__(self, to: CUDAGraph) -> None:
        super().__init__()
        self.calls, self._own, self._before = to.calls, set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        by_mask = "aten.index" in str(func) and any(t.dtype is torch.bool for t in tensors_of(args[1:2]))
        if by_mask or any(name in str(func) for name in REFUSED):
            raise RefusedError(f"{func} while a graph is recorded")
        given = [
            *zip(func._schema.arguments, args, strict=False),
            *((a, kwargs.get(a.name)) for a in func._schema.arguments),
        ]
        for argument, value in given:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_of(value):
                    self._keep(tensor.untyped_storage())
        found = func(*args, **kwargs)
        results = [result.detach() for result in tensors_of(found)]
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((args, kwargs))}
        self._own |= {result.untyped_storage().data_ptr() for result in results} - known
        if not func.is_view:
            self.calls.append((func, args, kwargs, results))
        return found

    def _keep(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() not in self._own and storage.data_ptr() not in self._before:
            self._before[storage.data_ptr()] = storage, storage.clone()

    def restore(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)


@contextlib.contextmanager
def graph(to: CUDAGraph, stream: "Stream") -> Iterator[None]:
    recorder, random_numbers = _Recorder(to), torch.get_rng_state()
    with recorder:
        yield
    recorder.restore()
    torch.set_rng_state(random_numbers)


class Stream:
    """A CPU has one queue of work, so there is nothing to wait for."""

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


def current_stream() -> Stream:
    return Stream()


@contextlib.contextmanager
def stream(which: Stream) -> Iterator[None]:
    yield
