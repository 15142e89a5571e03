"""`gvc plan`."""

import dataclasses
import json
import sys
from typing import Annotated, Any

import typer

from .options import DEVICE_HELP, ConfigDir, ConfigName, Json, Overrides, complete_device, starting

OWN_LINKS = {"h200": "nvlink4", "h100": "nvlink4", "a100": "nvlink3"}
"""The usual link between the devices of one machine."""


def plan(
    overrides: Overrides = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory of the device, such as 8GiB.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help=DEVICE_HELP, autocompletion=complete_device)] = "cpu",
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens of the whole training.")] = None,
    devices: Annotated[
        int | None, typer.Option(metavar="N", help="Devices of each machine; default train.devices.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Machines; default train.nodes.")] = None,
    interconnect: Annotated[
        str | None, typer.Option(metavar="NAME|SIZE", help="Slowest link: nvlink4, ib-ndr, or 25GB per second.")
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Show every line, whatever the width of the terminal.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Sizes of published small models instead.")] = False,
    as_json: Json = False,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "config",
) -> None:
    """Estimate the memory, largest batch, FLOPs and speed of a run with every head.

    No step is run. The overrides are those of gvc train. With several devices, the plan has the memory of each, the
    bytes sent and the time of a step, for DDP and FSDP2.

    Example: gvc plan model=gpt2-124m --device rtx3060
    """
    # Long because each option is an argument with its help text.
    with starting():
        from grouped_lm.config import check_range
        from grouped_lm.errors import ConfigError
        from grouped_lm.evaluate.counts import counts_tokens
        from grouped_lm.measure.devices import find_device, find_interconnect, parse_bytes
        from grouped_lm.plan.devices import plan_heads_on_devices
        from grouped_lm.plan.heads import plan_heads
        from grouped_lm.plan.tables import (
            devices_notes,
            devices_table,
            devices_values,
            notes,
            plan_table,
            plan_values,
            prior_bytes,
            prior_notes,
            summary_table,
        )
        from grouped_lm.system.console import natural_width, print_lines, print_table, terminal_width
        from grouped_lm.system.phases import phase

        from .compose.compose import HydraFlags
        from .compose.run import compose_one

    given = {"--tokens": tokens, "--memory": memory, "--devices": devices, "--nodes": nodes}
    given["--interconnect"] = interconnect
    if published and (unused := [name for name, value in given.items() if value is not None]):
        raise ConfigError(f"--published shows shares of one step on one device: leave {', '.join(unused)} out")
    check_range("--tokens", tokens, 1, 10**18)
    check_range("--devices", devices, 1, 10**6)
    check_range("--nodes", nodes, 1, 10**6)
    memory_bytes = None if memory is None else parse_bytes(memory)
    config = compose_one(overrides or [], HydraFlags(config_dir=config_dir, config_name=config_name))
    if counts_tokens(config):
        raise ConfigError(f"head={config.head.name} counts n-grams, and gvc plan plans networks: take another head")
    devices, nodes = devices or config.train.devices, nodes or config.train.nodes
    with phase(f"reading the figures of {device}"):
        chosen = find_device(device, config.train.dtype)
    if chosen.name == "cpu" and devices > 1:
        chosen = chosen.shared_by(devices)

    if published:
        print_published(config, chosen, as_json)
        return

    memory_bytes = memory_bytes or chosen.memory_bytes
    if are_several(devices * nodes, interconnect):
        link = find_interconnect(link_name(interconnect, chosen.name, nodes), on_cpu=chosen.name == "cpu")
        several = plan_heads_on_devices(config, devices * nodes, chosen, link, tokens)
        values = devices_values(config, several, memory_bytes, chosen, link)
        table, lines = devices_table(config, several, memory_bytes, chosen, link), devices_notes(chosen, link)
    else:
        plans, unplanned = plan_heads(config, memory_bytes, chosen, tokens)
        values = plan_values(config, plans, unplanned, memory_bytes, chosen)
        table, lines = plan_table(config, plans, memory_bytes, chosen), notes(plans, unplanned, chosen)
        if not wide and natural_width(table) > (terminal_width() or sys.maxsize):
            table = summary_table(config, plans, memory_bytes, chosen)
            lines = ["x: times, beside dense. --wide shows the parts of memory and the FLOPs too.", *lines]
    if as_json:
        most = prior_bytes(config, tokens)
        print(json.dumps(values | ({"prior_bytes_at_most": most} if most else {}), indent=2))
    else:
        print_table(table)
        print_lines([*lines, *prior_notes(config, tokens)])


def are_several(devices: int, interconnect: str | None) -> bool:
    """Return whether there are several devices; `ConfigError` if there is an interconnect for one."""
    from grouped_lm.errors import ConfigError

    if devices == 1 and interconnect is not None:
        raise ConfigError("--interconnect is for several devices: add --devices or --nodes")
    return devices > 1


def print_published(config: Any, device: Any, as_json: bool) -> None:
    """Print how much of a training step each head is at the sizes of published models."""
    from grouped_lm.plan.published import plan_published, published_notes, published_table
    from grouped_lm.system.console import print_lines, print_table

    plans = plan_published(config, device)
    if as_json:
        print(json.dumps([dataclasses.asdict(plan) for plan in plans], indent=2))
    else:
        print_table(published_table(config, plans))
        print_lines(published_notes())


def link_name(name: str | None, device: str, nodes: int) -> str:
    """Return `name`, or the usual link between such devices in one machine; raise `ConfigError` if there is none."""
    from grouped_lm.errors import ConfigError
    from grouped_lm.measure.devices import INTERCONNECTS

    name = name or (OWN_LINKS.get(device) if nodes == 1 else None)
    if name is None:
        what = "machines" if nodes > 1 else f"devices of kind {device}"
        raise ConfigError(f"--interconnect must say what lies between {what}: {', '.join(INTERCONNECTS)}, or 25GB")
    return name
