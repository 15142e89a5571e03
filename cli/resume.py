"""`gvc resume`."""

from .options import RunArgument, SavedOverrides, starting


def resume(run: RunArgument, overrides: SavedOverrides = None) -> None:
    """Continue a stopped run from its last checkpoint, with its own config. The last line printed is the run folder.

    Settings that do not change the result may be given, such as train.device=cpu or tracking=none, and the new path of
    a text that was moved. More steps or another text are a new run: gvc train init_from=RUN.

    Example: gvc resume runs/my-run train.log_every_steps=1
    """
    with starting():
        from .compose.resume import resume_run

    resume_run(run, overrides or [])
