"""A W&B workspace for our runs: quality, memory, speed and their trade-offs, by the keys that runs log.

It is made with wandb-workspaces. With a login it is saved at W&B, without one it is written as JSON.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from grouped_lm.errors import ConfigError, GvcError


class DashboardError(GvcError):
    """W&B refused the workspace."""


@dataclass(frozen=True)
class Panel:
    """A plot of logged keys: lines over `x` during the runs, or one point for the end of each run."""

    title: str
    x: str
    y: list[str]
    points: bool = False


def load_sections() -> dict[str, list[Panel]]:
    """Return the panels of each section, as `dashboard.yaml` defines them."""
    values = yaml.safe_load(files("grouped_lm.report").joinpath("dashboard.yaml").read_text(encoding="utf-8"))
    return {title: [Panel(**panel) for panel in panels] for title, panels in values.items()}


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
        ws.Section(name=title, panels=[plot(panel) for panel in panels], is_open=True)
        for title, panels in load_sections().items()
    ]
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


def workspace_json(workspace: Any) -> str:
    """Return the JSON for W&B. Ids are positions, not random, so that the text is always the same."""
    values = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    for number, bank in enumerate(values["spec"]["section"]["panelBankConfig"]["sections"]):
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
