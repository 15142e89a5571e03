"""`gvc reproduce` runs the steps that test the paper's claims; `gvc report` writes the page of verdicts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import complete_scale, say

if TYPE_CHECKING:
    from grouped_lm.reproduction.run import Reproduction


def reproduce(
    scale: Annotated[
        str, typer.Option(help="smoke, cpu, cpu-long, paper, or a .yaml file of yours.", autocompletion=complete_scale)
    ] = "smoke",
    data: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]DIR", help="A folder with train.txt and valid.txt. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Results; default runs/reproduce-SCALE.")] = None,
    only: Annotated[str | None, typer.Option(metavar="STEP,...", help="Run only these steps.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the steps and their commands. Run nothing.")] = False,
) -> None:
    """Test every claim of the paper, and write a page of verdicts.

    The claims need a text named tinystories (--data tinystories=DIR), and some a second text. The same command
    continues a reproduction. A step that fails does not stop the others. The exit code is then 1. To repeat a step,
    remove its folder and its entry in steps/.

    Example: gvc reproduce --scale smoke
    """
    from grouped_lm.errors import DiskError, GvcError
    from grouped_lm.reproduction.run import DONE, Reproduction
    from grouped_lm.reproduction.steps import find_texts, load_scale, select_steps

    chosen = load_scale(scale)
    steps = select_steps(chosen, only.split(",") if only else [])
    folder = out or Path("runs") / f"reproduce-{chosen.name}"
    try:
        texts = find_texts(data or [])
        work = Reproduction(chosen, folder, texts)
    except GvcError:
        write_page_of_what_there_is(folder)
        raise
    if show:
        print_steps(work)
        return
    lacking = {work.missing_text(step) for step in steps if step.needs}
    if "stories" in lacking or (lacking and None not in lacking):
        write_page_of_what_there_is(folder)
        raise no_text(scale, [text.name for text in texts])
    with work.lock():
        work.prepare()
        try:
            failed = work.run(steps, say)
        except DiskError:
            write_page_of_what_there_is(folder)
            raise
        except (KeyboardInterrupt, SystemExit):
            done = sum(work.state(step).state == DONE for step in steps)
            say(f"gvc: stopped: {done} of {len(steps)} steps are done in {folder}; the same command continues")
            raise
    for page in (folder / "report" / "report.html", folder / "report" / "report.md"):
        if page.exists():
            print(page, flush=True)
            break
    if failed:
        raise GvcError(f"{len(failed)} of {len(steps)} steps failed: {'; '.join(failed)}")


def no_text(scale: str, names: list[str]) -> Exception:
    """Return the error for a scale that needs a text, or one named tinystories."""
    from grouped_lm.errors import ConfigError, DataError

    if names:
        return ConfigError(
            f"--scale {scale} needs a text whose name begins with tinystories, which the claims are about, got "
            f"{' and '.join(names)}: --data tinystories=DIR names it"
        )
    return DataError(
        f"--scale {scale} needs text: --data tinystories=DIR with train.txt and valid.txt in it (documents end at "
        "<|endoftext|>), and a second --data DIR for the claims about other text"
    )


def write_page_of_what_there_is(folder: Path) -> None:
    """Write the page from the runs that an earlier command left in the folder."""
    from grouped_lm.errors import GvcError

    if not folder.is_dir():
        return
    try:
        from grouped_lm.reproduction.page import write_report

        write_report([folder], folder / "report", say)
    except GvcError as error:
        say(f"gvc: {error}")


def print_steps(work: "Reproduction") -> None:
    """Print each step: description, minutes, state and command."""
    scale, rows = work.scale, work.table(everything=True)
    planned = sum(row["minutes"] for row in rows)
    print(f"{scale.name}: {scale.about}. {planned:.1f} of at most {scale.minutes:g} minutes on {scale.machine}.")
    for number, row in enumerate(rows, start=1):
        taken = f", took {row['taken']:.1f}" if row["taken"] is not None else ""
        reason = f" ({row['reason']})" if row["reason"] else ""
        print(f"\n{number}. {row['step']}: {row['about']}. {row['minutes']:g} minutes{taken}; {row['state']}{reason}")
        print(f"   {row['command']}")


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Run folders, bench folders, or a report's folder.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: report/ in the first folder.")] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare the verdict table in FILE. Write nothing.")
    ] = None,
    into: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the verdict table into FILE.")] = None,
) -> None:
    """Write a page that answers every claim of the paper from runs and benches.

    The page is report.html and report.md, with tables as CSV and plots as SVG. The same runs give the same bytes. A
    claim without evidence reads "not shown at this scale".

    Example: gvc report runs/reproduce-smoke
    """
    from grouped_lm.reproduction.evidence import DATA
    from grouped_lm.reproduction.page import default_place, write_report
    from grouped_lm.reproduction.report import check_table, split_at_marks, write_table

    if check is not None:
        check_table(check, folders)
        print(f"{check}: its verdicts are those of {', '.join(map(str, folders))}")
        return
    if into is not None:
        split_at_marks(into)
    place = out or default_place(folders[0])
    page = write_report(folders, place, say)
    if not any((place / DATA).iterdir()):
        say(f"gvc: no run and no bench in {', '.join(map(str, folders))}: nothing speaks for any claim")
    if into is not None:
        write_table(into, folders)
    print(page)
