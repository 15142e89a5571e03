"""Tables keep to the terminal: by columns, and not by cutting words."""

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Column, Table

from grouped_lm.system.console import column_blocks, natural_width, print_table


def wide_table(columns: int = 7) -> Table:
    table = Table(title="a title", title_justify="left", caption="a caption")
    table.add_column("")
    for number in range(columns):
        table.add_column(f"head {number}", justify="right", overflow="fold")
    table.add_row("perplexity", *(f"{number}.25" for number in range(columns)))
    table.add_row("where the peak stands", *(f"body.h.{number}.mlp" for number in range(columns)))
    return table


def shown(table: Table, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    for block in column_blocks(table, width):
        console.print(block)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_cell_is_whole_at_any_width(width):
    text = shown(wide_table(), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(text.count(f"body.h.{number}.mlp") == 1 and text.count(f" {number}.25 ") == 1 for number in range(7))
    blocks = text.count("perplexity")
    assert 1 < blocks < 7
    assert (text.count("a title"), text.count("a caption")) == (1, 1)
    assert text.strip().startswith("a title")


def test_one_that_fits_is_left_alone():
    table = wide_table()
    assert column_blocks(table, natural_width(table)) == [table]
    assert len(column_blocks(table, natural_width(table) - 1)) == 2


def test_a_column_too_wide_for_any_block_stands_beside_the_first():
    table = Table("", "short", "also", Column("note", overflow="fold"))
    table.add_row("perplexity", "1.25", "2.5", "z" * 70)
    assert [len(block.columns) for block in column_blocks(table, 60)] == [3, 2]
    assert shown(table, 60).replace("│", "").count("z") == 70


def test_case_24_title_and_caption_are_wider_than_a_narrow_table(capsys):
    table = Table(title="a title of several words", caption="a caption of " + "many " * 30)
    table.add_column("n")
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a title of several words"
    assert lines[-1].count("many") == 30


def test_a_pipe_gets_all_columns_side_by_side(capsys):
    print_table(wide_table(30))
    lines = capsys.readouterr().out.splitlines()
    assert sum("perplexity" in line for line in lines) == 1
    assert sum("body.h.29.mlp" in line for line in lines) == 1
