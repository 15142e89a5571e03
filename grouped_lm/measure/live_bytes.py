"""Live bytes of a step, counted storage by storage as operators make and drop them; works on fake tensors.

A moment is one allocation: only there can the peak rise. Every size is a constant or grows with the shapes, so the
same step at other shapes has the same moments, and bytes between measured shapes can be interpolated moment by moment.
"""

import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("weights", "gradients", "optimizer", "body", "head", "temporary")
"""What a byte is for: the last three are what lives between the first operator of a step and its last."""


def parts_of(value: Any) -> tuple[Tensor, ...]:
    """Return the dense tensors that hold a value's numbers: itself, or the parts of a sparse one; none of others."""
    if not isinstance(value, Tensor):
        return ()
    if value.layout is torch.sparse_csr:
        return value.crow_indices(), value.col_indices(), value.values()
    return (value._indices(), value._values()) if value.is_sparse else (value,)


class ModulePlace:
    """Which module an operator belongs to, in the forward pass and in the backward pass.

    A node of the autograd graph carries the number of its creation; a module owns those between its entry and exit.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[tuple[str, int]] = []
        self._spans: list[tuple[int, int, str]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow every forward pass inside."""
        hooks = [
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append((self._names.get(module, ""), torch._C._autograd._get_sequence_nr()))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name, first = self._stack.pop()
        self._spans.append((first, torch._C._autograd._get_sequence_nr(), name))  # inner modules stand first

    def now(self) -> str:
        """Return the innermost module at work, "" between them."""
        if self._stack:
            return self._stack[-1][0]
        node = torch._C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        return next((name for first, last, name in self._spans if first <= number < last), "")


@dataclass(frozen=True)
class Moments:
    """What lived at every allocation of a step."""

    live: np.ndarray
    """(moments, kinds) bytes, in the order of time."""
    modules: list[str]
    """The module at work at each moment, "" outside of all."""
    made: int
    """Bytes of all storages that the step made."""


class LiveBytes(TorchDispatchMode):
    """Record every storage that operators make while it is `watching`; the modules are those of `model`.

    While a mode watches, autograd adds up gradients in new storages; without one it adds in place where nobody else
    holds the first term, as somebody does that of a view. So other sums in the backward pass count only once the terms
    that are to go are gone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._place = ModulePlace(model)
        self._alive: dict[int, int] = {}
        self._refs: list[Any] = []
        self._events: list[tuple[int, int]] = []
        self._sizes: list[int] = []
        self._labels: list[tuple[str, str]] = []
        self._sums: set[int] = set()

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count what lives already, and give what was counted another kind."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            number = self._alive.get(storage._cdata)
            if number is None:
                self._follow(storage, kind, "")
            else:
                self._labels[number] = kind, self._labels[number][1]

    def _follow(self, storage: torch.UntypedStorage, kind: str, module: str) -> int:
        number, key = len(self._sizes), storage._cdata
        self._sizes.append(storage.nbytes())
        self._labels.append((kind, module))
        self._events.append((number, 1))
        self._alive[key] = number

        def gone(_: Any) -> None:
            del self._alive[key]
            self._events.append((number, -1))

        self._refs.append(weakref.ref(storage, gone))
        return number

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow what is made inside."""
        self._held = len(self._sizes)
        with self._place.watching(), self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and follow the storages in its output that are new."""
        backward, module = torch._C._current_graph_task_id() != -1, self._place.now()
        kind = "temporary" if backward else module.split(".")[0]
        kind = kind if kind in KINDS else "temporary"
        out = func(*args, **(kwargs or {}))
        for leaf in itertools.chain.from_iterable(map(parts_of, tree_leaves(out))):
            if leaf.untyped_storage()._cdata not in self._alive:
                number = self._follow(leaf.untyped_storage(), kind, module)
                if backward and func is torch.ops.aten.add.Tensor and not args[0]._is_view():
                    self._sums.add(number)
        return out

    def moments(self) -> Moments:
        """Return what lived at each allocation so far."""
        live, rows, modules = np.zeros(len(KINDS), dtype=np.int64), [], []
        waiting = False
        for number, sign in [*self._events, (-1, 1)]:
            if waiting and sign > 0:
                rows.append(live.copy())
                waiting = False
            if number < 0:
                break
            kind, module = self._labels[number]
            live[KINDS.index(kind)] += sign * self._sizes[number]
            if sign > 0:
                modules.append(module)
                waiting = number in self._sums
                if not waiting:
                    rows.append(live.copy())
        return Moments(np.array(rows), modules, sum(self._sizes[self._held :]))
