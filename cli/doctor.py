"""`gvc doctor`."""

import json
from typing import Annotated

import typer

from .options import Json, starting


def doctor(
    as_json: Json = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Only check for a CUDA device. Exit 2 without one.")] = False,
) -> None:
    """Check this machine: versions, devices, tokenizer files, W&B, disk.

    The exit code is 1 if a run would fail.

    Example: gvc doctor
    """
    if gpu:
        import torch

        from grouped_lm.errors import ConfigError

        if not torch.cuda.is_available():
            raise ConfigError("torch sees no CUDA device here: `gvc doctor` says what this machine has")
        return

    with starting():
        from grouped_lm.jobs.doctor import examine
        from grouped_lm.system.console import print_checks

    checks = examine()
    if as_json:
        print(json.dumps([{"what": c.what, "ok": c.ok, "detail": c.detail} for c in checks], indent=2))
    else:
        print_checks(checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
