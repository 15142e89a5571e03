"""A W&B workspace for our runs: quality, memory, speed and their trade-offs, by the keys that runs log.

It is made with wandb-workspaces. With a login it is saved at W&B, without one it is written as JSON.
"""

import json
from dataclasses import dataclass
from typing import Any

from grouped_lm.errors import ConfigError, GvcError

TOKENS, STEP = "trainer/tokens", "trainer/step"


class DashboardError(GvcError):
    """W&B refused the workspace."""


@dataclass(frozen=True)
class Panel:
    """A plot of logged keys: lines over `x` during the runs, or one point for the end of each run."""

    title: str
    x: str
    y: tuple[str, ...]
    points: bool = False


SECTIONS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Quality",
        (
            Panel("Validation loss, nats per token", TOKENS, ("val/loss",)),
            Panel("Validation perplexity", TOKENS, ("val/perplexity",)),
            Panel("Bits per byte", TOKENS, ("val/bits_per_byte",)),
            Panel("Training loss, nats per token", TOKENS, ("train/loss",)),
            Panel("Training loss of group and token", TOKENS, ("train/loss_group", "train/loss_token")),
            Panel("Group accuracy", TOKENS, ("val/group_accuracy",)),
            Panel("Gradient norm", STEP, ("train/grad_norm",)),
            Panel("Learning rate", STEP, ("train/lr",)),
        ),
    ),
    (
        "Memory",
        (
            Panel("Peak of the GPU's allocator, GiB", STEP, ("memory/peak_gpu_gib", "memory/peak_reserved_gib")),
            Panel("Peak of live tensors, GiB", STEP, ("memory/peak_tensor_gib",)),
            Panel("Peak of the process, GiB", STEP, ("memory/peak_rss_gib",)),
        ),
    ),
    (
        "Speed",
        (
            Panel("Tokens per second", STEP, ("throughput/tokens_per_sec",)),
            Panel("Share of the matrix product's speed", STEP, ("throughput/mfu",)),
            Panel("Milliseconds per step", STEP, ("time/step_ms",)),
        ),
    ),
    (
        "Trade-off",
        (
            Panel("Loss against speed", "throughput/tokens_per_sec", ("val/loss",), points=True),
            Panel("Loss against memory of the head", "memory/peak_head_gib", ("val/loss",), points=True),
            Panel("Loss against parameters of the head", "params/head", ("val/loss",), points=True),
        ),
    ),
)


def panel_keys() -> set[str]:
    """Return every key that is in a panel."""
    return {key for _, panels in SECTIONS for panel in panels for key in (panel.x, *panel.y)}


def build_workspace(entity: str, project: str, name: str) -> Any:
    """Return the workspace, not saved yet.

    Args:
        entity: user or team at W&B; any text if it is only written as JSON.
        project: `tracking.project` of the runs.
        name: of the saved view.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ConfigError(
            f"a dashboard needs wandb-workspaces ({error}): pip install 'grouped-lm[dashboard]'"
        ) from error

    def plot(panel: Panel) -> Any:
        if panel.points:
            return wr.ScatterPlot(title=panel.title, x=panel.x, y=panel.y[0])
        return wr.LinePlot(title=panel.title, x=panel.x, y=[*panel.y])

    sections = [
        ws.Section(name=title, panels=[plot(panel) for panel in panels], is_open=True) for title, panels in SECTIONS
    ]
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


def workspace_json(workspace: Any) -> str:
    """Return the JSON for W&B. Ids are positions, not random, so that the text is always the same."""
    values = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    banks = values["spec"]["section"]["panelBankConfig"]["sections"]
    for number, bank in enumerate(banks):
        for place, panel in enumerate(bank["panels"]):
            panel["__id__"] = f"gvc{number}x{place}"
    return json.dumps(values, indent=2) + "\n"


def save_workspace(entity: str | None, project: str, name: str) -> str:
    """Save the workspace at W&B and return its address.

    Args:
        entity: user or team at W&B; None for the account's own.
        project: `tracking.project` of the runs.
        name: of the saved view.

    Raises:
        DashboardError: no login, no connection, or no such project.
        ConfigError: wandb-workspaces is not installed.
    """
    from grouped_lm.runs.tracking import default_entity

    try:
        return build_workspace(entity or default_entity(), project, name).save().url
    except GvcError:
        raise
    except Exception as error:  # requests, GraphQL and W&B each raise their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DashboardError(
            f"W&B did not take the dashboard ({reason}): `wandb login` first, or --offline writes it as JSON"
        ) from error
