"""A plan as a table for people, and as JSON."""

import dataclasses
from collections.abc import Callable
from typing import Any

from rich.table import Table

from grouped_lm.config import Config
from grouped_lm.measure.devices import Device
from grouped_lm.measure.interconnects import Interconnect
from grouped_lm.measure.live_bytes import KINDS
from grouped_lm.measure.memory import GIB
from grouped_lm.plan.devices import DevicesPlan
from grouped_lm.plan.heads import MAX_BATCH, MAX_CONTEXT, UTILISATION, HeadPlan

KIND_LABELS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "body": "body activations",
    "head": "head",
    "temporary": "temporary",
}
Row = tuple[str, Callable[[HeadPlan], str]]
DevicesRow = tuple[str, Callable[[DevicesPlan], str]]


def size(n_bytes: float) -> str:
    """Return bytes in GiB, or in MiB under a hundredth of one."""
    return f"{n_bytes / GIB:,.2f} GiB" if n_bytes >= GIB / 100 else f"{n_bytes / 2**20:,.2f} MiB"


def at_most(value: int, ceiling: int, unit: str) -> str:
    """Return the value, said to be a bound where the search ended."""
    return f"not one {unit} fits" if value == 0 else f"{value:,}" + (" or more" if value == ceiling else "")


def rows() -> list[Row]:
    """Return label and cell of every line."""
    return [
        ("peak memory of a step", lambda p: size(p.peak_bytes)),
        *((f"  {KIND_LABELS[kind]}", lambda p, kind=kind: size(p.parts[kind])) for kind in KINDS),
        ("  the peak stands in", lambda p: p.peak_module),
        ("largest train.micro_batch_size", lambda p: at_most(p.largest_micro_batch_size, MAX_BATCH, "window")),
        ("longest model.block_size", lambda p: at_most(p.longest_block_size, MAX_CONTEXT, "token")),
        ("MFLOPs per token, forward: body", lambda p: f"{p.body_flops_per_token / 1e6:,.3f}"),
        ("MFLOPs per token, forward: head", lambda p: f"{p.head_flops_per_token / 1e6:,.3f}"),
        ("cap in FLOPs, 1 + head / body", lambda p: f"{p.flops_cap:.2f}x"),
        ("FLOPs, times fewer than dense", lambda p: f"{p.flops_ratio:.2f}x"),
        ("memory, times less than dense", lambda p: f"{p.memory_ratio:.2f}x"),
        ("speed, times that of dense", lambda p: f"{p.speed_ratio:.2f}x"),
        ("tokens per second, estimated", lambda p: f"{p.tokens_per_sec:,.0f}"),
        ("hours, estimated", lambda p: f"{p.hours:,.2f}" if p.hours >= 0.01 else f"{p.hours:.2g}"),
    ]


def notes(plans: list[HeadPlan], unplanned: list[str], device: Device) -> list[str]:
    """Return the heads that do not help, and what the figures take for granted."""
    useless = [f"{p.head}: this head will not help you here" for p in plans if p.head != "dense" and not p.helps]
    return [
        *useless,
        *(f"{name}: not planned, its sizes depend on the tokens of a batch or of the text" for name in unplanned),
        "memory: live tensors of an eager step; a GPU's context, workspaces and fragmentation come on top",
        f"speed: assumes {UTILISATION:.0%} of the peak FLOP/s, and every tensor written and read once; narrow bodies "
        "(D 64) have run 2 to 6 times slower",
        f"{device.name}: {device.source}",
    ]


def plan_table(config: Config, plans: list[HeadPlan], memory_bytes: int, device: Device) -> Table:
    """Return the heads side by side."""
    train, model = config.train, config.model
    title = (
        f"{model.name}, micro_batch_size {train.micro_batch_size}, block_size {model.block_size}, {train.dtype}, "
        f"{size(memory_bytes)} of memory, {device.name}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for plan in plans:
        table.add_column(plan.head, justify="right", overflow="fold")
    for label, cell in rows():
        table.add_row(label, *(cell(plan) for plan in plans))
    return table


def plan_values(
    config: Config, plans: list[HeadPlan], unplanned: list[str], memory_bytes: int, device: Device
) -> dict[str, Any]:
    """Return the plan ready for JSON; sizes in bytes, FLOPs per token and forward pass."""
    return {
        "model": config.model.name,
        "micro_batch_size": config.train.micro_batch_size,
        "block_size": config.model.block_size,
        "dtype": config.train.dtype,
        "memory_bytes": memory_bytes,
        "device": dataclasses.asdict(device),
        "assumed_utilisation": UTILISATION,
        "unplanned": unplanned,
        "heads": [
            dataclasses.asdict(plan) | {"flops_cap": plan.flops_cap, "helps": plan.head == "dense" or plan.helps}
            for plan in plans
        ],
    }


def devices_rows(memory_bytes: int) -> list[DevicesRow]:
    """Return label and cell of every line of a plan for several devices."""
    return [
        ("peak memory of each device", lambda p: size(p.peak_bytes)),
        ("  weights", lambda p: size(p.weights_bytes)),
        ("  gradients", lambda p: size(p.gradients_bytes)),
        ("  optimizer state", lambda p: size(p.optimizer_bytes)),
        ("  activations, and what is gathered", lambda p: size(p.peak_bytes - p.state_bytes)),
        (f"fits into {size(memory_bytes)}", lambda p: "yes" if p.peak_bytes <= memory_bytes else "no"),
        ("sent by each device in a step", lambda p: size(p.sent_bytes)),
        ("ms of a step, estimated", lambda p: f"{1000 * p.step_s:,.2f}"),
        ("  computing", lambda p: f"{1000 * p.compute_s:,.2f}"),
        ("  waiting for others", lambda p: f"{1000 * p.exposed_s:,.2f}"),
        ("ms of all exchange", lambda p: f"{1000 * p.exchange_s:,.2f}"),
        ("share of the time spent computing", lambda p: f"{p.efficiency:.1%}"),
        ("tokens per second of all, estimated", lambda p: f"{p.tokens_per_sec:,.0f}"),
        ("hours, estimated", lambda p: f"{p.hours:,.2f}" if p.hours >= 0.01 else f"{p.hours:.2g}"),
    ]


def devices_table(
    config: Config, plans: list[DevicesPlan], memory_bytes: int, device: Device, link: Interconnect
) -> Table:
    """Return heads and strategies side by side."""
    train, model, processes = config.train, config.model, plans[0].processes
    title = (
        f"{model.name}, {processes} x {device.name} over {link.name}, micro_batch_size {train.micro_batch_size} of all "
        f"({train.micro_batch_size // processes} each), block_size {model.block_size}, {train.dtype}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for plan in plans:
        table.add_column(f"{plan.head} {plan.strategy}", justify="right", overflow="fold")
    for label, cell in devices_rows(memory_bytes):
        table.add_row(label, *(cell(plan) for plan in plans))
    return table


def devices_notes(device: Device, link: Interconnect) -> list[str]:
    """Return what the figures of several devices take for granted."""
    return [
        "memory: live tensors of an eager step; within 10 % of 2 and 4 gloo processes; a GPU's context, workspaces, "
        "fragmentation and NCCL's buffers come on top",
        f"speed: {UTILISATION:.0%} of the peak FLOP/s, all of the link's bandwidth, no latency; not held against GPUs",
        f"{device.name}: {device.source}",
        f"{link.name}: {link.source}",
    ]


def devices_values(
    config: Config, plans: list[DevicesPlan], memory_bytes: int, device: Device, link: Interconnect
) -> dict[str, Any]:
    """Return the plan for several devices ready for JSON; sizes in bytes, times in seconds."""
    return {
        "model": config.model.name,
        "micro_batch_size": config.train.micro_batch_size,
        "block_size": config.model.block_size,
        "dtype": config.train.dtype,
        "processes": plans[0].processes,
        "memory_bytes": memory_bytes,
        "device": dataclasses.asdict(device),
        "interconnect": dataclasses.asdict(link),
        "plans": [
            dataclasses.asdict(p)
            | {"step_s": p.step_s, "efficiency": p.efficiency, "fits": p.peak_bytes <= memory_bytes}
            for p in plans
        ],
    }
