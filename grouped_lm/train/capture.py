"""`train.cuda_graphs`: the whole training step as one CUDA graph, which the host launches with a single call.

A graph repeats the work of the device on the same addresses, with the same sizes and numbers. So batches are copied
into tensors of its own, the learning rate is a tensor, and a step that is not finite is left out by the device. What
the host does in each step stays outside: `TrainingStep.record`.

Source: "CUDA Graphs" in PyTorch's notes on CUDA semantics, "Whole-network capture".

Letters: B windows of a micro-batch, T tokens of a window.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from grouped_lm.config import Config
from grouped_lm.errors import ConfigError
from grouped_lm.optim.training_step import DeviceMetrics, TrainingStep

PLAIN_STEPS = 3
"""Steps before the recorded one: they make the state of the optimizer, compile kernels and choose algorithms."""


def cuda_of(device: torch.device) -> Any:
    """Return the module that records graphs on `device`, None where nothing does."""
    return torch.cuda if device.type == "cuda" else None


def check_capture(config: Config, device: torch.device) -> None:
    """Check that a step of this run can be recorded, if it is to be.

    Raises:
        ConfigError: the device is no GPU, or a part of the step needs the host.
    """
    if not config.train.cuda_graphs:
        return
    if cuda_of(device) is None:
        given = f"train.device={config.train.device}, which is {device} here"
        raise ConfigError(f"train.cuda_graphs=true needs a GPU, got {given}")
    optim = config.optim
    if optim.name != "adamw" or getattr(optim, "sparse_rows", False):
        given = f"optim={optim.name}" if optim.name != "adamw" else "optim.sparse_rows=true"
        raise ConfigError(
            f"train.cuda_graphs=true needs optim=adamw with optim.sparse_rows=false, got {given}: "
            "its update reads numbers on the host"
        )
    if config.model.activation_checkpointing and config.model.dropout:
        raise ConfigError(
            "train.cuda_graphs=true cannot record model.activation_checkpointing=true with "
            f"model.dropout={config.model.dropout}, which repeats random numbers: set one of them to false or 0"
        )


class CapturedStep:
    """A `TrainingStep` that is recorded after `PLAIN_STEPS` steps and repeated from then on.

    Every step trains: recording alone does nothing. The losses and weights are those of plain steps.
    """

    def __init__(self, plain: TrainingStep) -> None:
        check_capture(plain.config, plain.device)
        self._plain, self._cuda = plain, cuda_of(plain.device)
        self._stream = self._cuda.Stream()  # recording needs another stream than the default one
        # torch's fused update reads a learning rate in fp32 from a GPU, and in fp64 from a CPU
        dtype = torch.float32 if plain.device.type == "cuda" else torch.float64
        for group in plain.optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=dtype, device=plain.device)
        self._batches: list[tuple[Tensor, Tensor]] = []
        self.forget()

    def forget(self) -> None:
        """Begin again with plain steps: the tensors whose addresses were recorded have been replaced."""
        self._graph: Any = None
        self._metrics: DeviceMetrics | None = None
        self._n_plain = 0

    def make(self, batches: Iterable[tuple[Tensor, Tensor]], step: int, lr: float) -> None:
        """Make one optimizer step, as `TrainingStep.make` does."""
        if self._n_plain < PLAIN_STEPS:
            self._n_plain += 1
            current = self._cuda.current_stream()
            self._stream.wait_stream(current)
            with self._cuda.stream(self._stream):
                self._plain.make(batches, step, lr)
            current.wait_stream(self._stream)
            return
        self._fill(batches)
        if self._graph is None:
            self._record()
        self._graph.replay()
        assert self._metrics is not None
        self._plain.record(DeviceMetrics(self._metrics.keys, self._metrics.values.clone()), step, lr)

    def _fill(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Copy the (B, T) ids and targets of each micro-batch to where the graph reads them."""
        for number, (input_ids, targets) in enumerate(batches):
            if self._graph is None and number == len(self._batches):
                self._batches.append((torch.empty_like(input_ids), torch.empty_like(targets)))
            to_ids, to_targets = self._batches[number]
            if input_ids.shape != to_ids.shape:
                raise ConfigError(
                    f"train.cuda_graphs=true has recorded micro-batches of {tuple(to_ids.shape)}, "
                    f"got {tuple(input_ids.shape)}: every step needs the same sizes"
                )
            to_ids.copy_(input_ids, non_blocking=True)
            to_targets.copy_(targets, non_blocking=True)

    def _record(self) -> None:
        graph = self._cuda.CUDAGraph()
        for group in self._plain.optimizer.param_groups:
            group["capturable"] = True
        try:
            with self._cuda.graph(graph, stream=self._stream):
                self._metrics = self._plain.apply(self._plain.losses(self._batches))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # as in a head of one's own that reads a number
            reason, head = str(error).partition("\n")[0], self._plain.config.head.name
            raise ConfigError(
                f"train.cuda_graphs=true cannot record a step of head={head}: {reason}; leave it out"
            ) from error
        self._graph = graph
