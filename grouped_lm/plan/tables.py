"""Plans as tables for people, and as values for JSON."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from grouped_lm.config import Config
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.heads.losses import kernels
from grouped_lm.measure.devices import Device, Interconnect
from grouped_lm.measure.live_bytes import KINDS
from grouped_lm.measure.memory import GIB
from grouped_lm.plan.devices import DevicesPlan
from grouped_lm.plan.heads import MAX_BATCH, MAX_CONTEXT, UTILISATION, HeadPlan
from grouped_lm.plan.launches import has_kernels
from grouped_lm.prior.tables import bound_bytes

KIND_LABELS = {"optimizer": "optimizer state", "body": "body activations"}


def size(n_bytes: float) -> str:
    """Return bytes in GiB, or in MiB under 0.01 GiB."""
    return f"{n_bytes / GIB:,.2f} GiB" if n_bytes >= GIB / 100 else f"{n_bytes / 2**20:,.2f} MiB"


def bytes_unit(plans: Sequence[HeadPlan | DevicesPlan]) -> tuple[str, Callable[[float], str]]:
    """Return one unit for all sizes of a table, and the function that formats bytes in it."""
    unit, factor = ("GiB", GIB) if min(plan.peak_bytes for plan in plans) >= GIB else ("MiB", 2**20)
    return unit, lambda n_bytes: f"{n_bytes / factor:,.2f}"


def time_unit(plans: Sequence[HeadPlan | DevicesPlan]) -> tuple[str, Callable[[Any], str]]:
    """Return one unit for the times of a table, that of the longest, and the function that formats a plan's time."""
    longest = max(plan.hours for plan in plans)
    unit, per_hour = next((u for u in (("hours", 1), ("minutes", 60)) if longest * u[1] >= 1), ("seconds", 3600))
    return unit, lambda plan: f"{plan.hours * per_hour:,.2f}"


def at_most(value: int, ceiling: int, unit: str) -> str:
    """Return the value, as a lower bound if it is the end of the search."""
    return f"not one {unit} fits" if value == 0 else f"{value:,}" + (" or more" if value == ceiling else "")


def side_by_side(title: str, plans: dict[str, Any], rows: dict[str, Callable[[Any], str]]) -> Table:
    """Return a table with a column per named plan, and a line per label with the function of its cells."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in plans:
        table.add_column(name, justify="right", overflow="fold")
    for label, cell in rows.items():
        table.add_row(label, *map(cell, plans.values()))
    return table


def plan_title(config: Config, memory_bytes: int, device: Device) -> str:
    """Return what all heads of a plan share."""
    train, model = config.train, config.model
    return (
        f"{model.name}, micro_batch_size {train.micro_batch_size}, block_size {model.block_size}, {train.dtype}, "
        f"{size(memory_bytes)} of memory, {device.name}; predicted"
    )


def summary_table(config: Config, plans: list[HeadPlan], memory_bytes: int, device: Device) -> Table:
    """Return a line per head with the figures that decide, for a terminal on which `plan_table` does not fit."""
    (unit, in_unit), (time, in_time) = bytes_unit(plans), time_unit(plans)
    cells: dict[str, Callable[[HeadPlan], str]] = {
        "head": lambda p: p.head,
        f"peak\n{unit}": lambda p: in_unit(p.peak_bytes),
        "largest\nbatch": lambda p: f"{p.largest_micro_batch_size:,}" + "+" * (p.largest_micro_batch_size == MAX_BATCH),
        "longest\ncontext": lambda p: f"{p.longest_block_size:,}" + "+" * (p.longest_block_size == MAX_CONTEXT),
        "less\nmemory": lambda p: f"{p.memory_ratio:.2f}x",
        "faster": lambda p: f"{p.speed_ratio:.2f}x",
        "tokens/s": lambda p: f"{p.tokens_per_sec:,.0f}",
        time: in_time,
    }
    table = Table(title=plan_title(config, memory_bytes, device), title_justify="left", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    for label in cells:
        table.add_column(label, justify="left" if label == "head" else "right")
    for plan in plans:
        table.add_row(*(cell(plan) for cell in cells.values()))
    return table


def plan_table(config: Config, plans: list[HeadPlan], memory_bytes: int, device: Device) -> Table:
    """Return the heads side by side."""
    (unit, in_unit), (time, in_time) = bytes_unit(plans), time_unit(plans)

    def part(kind: str) -> Callable[[HeadPlan], str]:
        return lambda p: in_unit(p.parts[kind])

    cells: dict[str, Callable[[HeadPlan], str]] = {
        f"peak memory of a step, predicted, {unit}": lambda p: in_unit(p.peak_bytes),
        **{f"  {KIND_LABELS.get(kind, kind)}": part(kind) for kind in KINDS},
        "  module at the peak": lambda p: p.peak_module,
        "largest train.micro_batch_size": lambda p: at_most(p.largest_micro_batch_size, MAX_BATCH, "window"),
        "longest model.block_size": lambda p: at_most(p.longest_block_size, MAX_CONTEXT, "token"),
        "MFLOPs per token, forward: body": lambda p: f"{p.body_flops_per_token / 1e6:,.3f}",
        "MFLOPs per token, forward: head": lambda p: f"{p.head_flops_per_token / 1e6:,.3f}",
        "largest possible gain, 1 + head / body": lambda p: f"{p.flops_cap:.2f}x",
        "share of a step's FLOPs in the head": lambda p: f"{p.head_share:.1%}",
        "launches of the head, loss and gradients": lambda p: f"{p.head_launches:,}",
        "FLOPs, times fewer than dense": lambda p: f"{p.flops_ratio:.2f}x",
        "memory, times less than dense": lambda p: f"{p.memory_ratio:.2f}x",
        "speed, times that of dense, predicted": lambda p: f"{p.speed_ratio:.2f}x",
        "tokens per second, predicted": lambda p: f"{p.tokens_per_sec:,.0f}",
        f"{time}, predicted": in_time,
    }
    return side_by_side(plan_title(config, memory_bytes, device), {plan.head: plan for plan in plans}, cells)


def notes(plans: list[HeadPlan], unplanned: list[str], device: Device) -> list[str]:
    """Return the heads that do not help, and the assumptions of the plan."""
    useless = [f"{p.head}: this head will not help you here" for p in plans if p.head != "dense" and not p.helps]
    return [
        *useless,
        *(f"{name}: not planned, its sizes depend on the tokens of a batch or of the text" for name in unplanned),
        "memory: live tensors of an eager step; a GPU's context, workspaces and fragmentation are not included",
        f"speed: assumes {UTILISATION:.0%} of the peak FLOP/s, and every tensor written and read once; narrow bodies "
        "(D 64) have run 2 to 6 times slower",
        *kernel_notes(device),
        f"{device.name}: {device.source}",
    ]


def prior_bytes(config: Config, tokens: int | None) -> int:
    """Return the most bytes of the counts of `prior=kneser_ney` for a text of so many tokens; 0 without a prior.

    Without `tokens` it is a text that training reads once.
    """
    train = config.train
    tokens = tokens or train.max_steps * train.micro_batch_size * train.grad_accum_steps * config.model.block_size
    return bound_bytes(tokens, vocab_size_of(config.tokenizer), config.prior.order) if config.prior.is_on else 0


def prior_notes(config: Config, tokens: int | None) -> list[str]:
    """Return the memory of the counts, if there is a prior."""
    most = prior_bytes(config, tokens)
    where = "in the memory of each process, beside these figures; real text needs a third to a half"
    return [f"prior: its counts take at most {size(most)} {where}"] if most else []


def kernel_notes(device: Device) -> list[str]:
    """Return whether the kernels of heads are part of a plan for a GPU."""
    if not has_kernels(device):
        return []
    if not kernels.HAS_TRITON:
        return ["kernels: triton is not installed here, so the plan has the operators of torch that they equal"]
    return ["kernels: the plan has the bytes and launches of the kernels of heads; no time on a GPU was measured"]


def common_values(config: Config, memory_bytes: int, device: Device) -> dict[str, Any]:
    """Return the values that every plan has, ready for JSON."""
    return {
        "model": config.model.name,
        "micro_batch_size": config.train.micro_batch_size,
        "block_size": config.model.block_size,
        "dtype": config.train.dtype,
        "memory_bytes": memory_bytes,
        "device": dataclasses.asdict(device),
    }


def plan_values(
    config: Config, plans: list[HeadPlan], unplanned: list[str], memory_bytes: int, device: Device
) -> dict[str, Any]:
    """Return the plan ready for JSON: sizes in bytes, FLOPs per token and forward pass."""
    heads = [
        dataclasses.asdict(plan)
        | {"flops_cap": plan.flops_cap, "head_share": plan.head_share, "helps": plan.head == "dense" or plan.helps}
        for plan in plans
    ]
    shared = common_values(config, memory_bytes, device)
    return shared | {"assumed_utilisation": UTILISATION, "unplanned": unplanned, "heads": heads}


def devices_table(
    config: Config, plans: list[DevicesPlan], memory_bytes: int, device: Device, link: Interconnect
) -> Table:
    """Return heads and strategies side by side."""
    train, model, processes = config.train, config.model, plans[0].processes
    (unit, in_unit), (time, in_time) = bytes_unit(plans), time_unit(plans)
    cells: dict[str, Callable[[DevicesPlan], str]] = {
        f"peak memory of each device, predicted, {unit}": lambda p: in_unit(p.peak_bytes),
        "  weights": lambda p: in_unit(p.weights_bytes),
        "  gradients": lambda p: in_unit(p.gradients_bytes),
        "  optimizer state": lambda p: in_unit(p.optimizer_bytes),
        "  activations and gathered weights": lambda p: in_unit(p.peak_bytes - p.state_bytes),
        f"fits into {size(memory_bytes)}": lambda p: "yes" if p.peak_bytes <= memory_bytes else "no",
        f"sent by each device in a step, {unit}": lambda p: in_unit(p.sent_bytes),
        "ms of a step, predicted": lambda p: f"{1000 * p.step_s:,.2f}",
        "  computing": lambda p: f"{1000 * p.compute_s:,.2f}",
        "  waiting for others": lambda p: f"{1000 * p.exposed_s:,.2f}",
        "ms of all communication": lambda p: f"{1000 * p.exchange_s:,.2f}",
        "share of the time spent computing": lambda p: f"{p.efficiency:.1%}",
        "tokens per second of all, predicted": lambda p: f"{p.tokens_per_sec:,.0f}",
        f"{time}, predicted": in_time,
    }
    title = (
        f"{model.name}, {processes} x {device.name} over {link.name}, micro_batch_size {train.micro_batch_size} of all "
        f"({train.micro_batch_size // processes} each), block_size {model.block_size}, {train.dtype}"
    )
    return side_by_side(title, {f"{plan.head} {plan.strategy}": plan for plan in plans}, cells)


def devices_notes(device: Device, link: Interconnect) -> list[str]:
    """Return the assumptions of a plan for several devices."""
    return [
        "memory: live tensors of an eager step, within 10 % of 2 and 4 gloo processes; a GPU's context, workspaces, "
        "fragmentation and NCCL's buffers are not included",
        f"speed: {UTILISATION:.0%} of the peak FLOP/s, all of the link's bandwidth, no latency; not compared with GPUs",
        *kernel_notes(device),
        f"{device.name}: {device.source}",
        f"{link.name}: {link.source}",
    ]


def devices_values(
    config: Config, plans: list[DevicesPlan], memory_bytes: int, device: Device, link: Interconnect
) -> dict[str, Any]:
    """Return the plan for several devices ready for JSON: sizes in bytes, times in seconds."""
    each = [
        dataclasses.asdict(p) | {"step_s": p.step_s, "efficiency": p.efficiency, "fits": p.peak_bytes <= memory_bytes}
        for p in plans
    ]
    values = {"processes": plans[0].processes, "interconnect": dataclasses.asdict(link), "plans": each}
    return common_values(config, memory_bytes, device) | values
