"""`gvc plan`."""

import json
from typing import Annotated

import typer

from .train import ConfigDir, ConfigName, Overrides


def plan(
    overrides: Overrides = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for tensors: 8GiB, 500MB ...; default the device's own.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Whose speed counts: a100, h100, t4, rtx4090 or cpu (measured here).")
    ] = "cpu",
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of the whole training; default the config's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout: every figure.")] = False,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "config",
) -> None:
    """Say what a run will need with every head: memory, largest shapes, FLOPs, speed. Runs no step.

    The overrides are those of `gvc train`; the body, batch and context that they compose are planned.
    """
    from grouped_lm.config import check_range
    from grouped_lm.devices import find_device, parse_bytes

    from .hydra_entry import HydraFlags, compose_jobs, explained

    check_range("--tokens", tokens, 1, 10**18)
    memory_bytes = None if memory is None else parse_bytes(memory)
    flags = HydraFlags(config_dir=config_dir, config_name=config_name)
    with explained(overrides or [], flags):
        config, _ = compose_jobs(overrides or [], flags)[0]
    chosen = find_device(device, config.train.dtype)

    from grouped_lm.plan import plan_heads
    from grouped_lm.plan_table import notes, plan_table, plan_values

    memory_bytes = memory_bytes or chosen.memory_bytes
    plans, unplanned = plan_heads(config, memory_bytes, chosen, tokens)
    if as_json:
        print(json.dumps(plan_values(config, plans, unplanned, memory_bytes, chosen), indent=2))
    else:
        from grouped_lm.display import print_table

        print_table(plan_table(config, plans, memory_bytes, chosen))
        print("\n".join(notes(plans, unplanned, chosen)))
