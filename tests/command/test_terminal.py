"""What was typed and what is printed, apart from the commands; the tests of each command try the rest."""

import io

import pytest
import torch
from rich.console import Console

from torch_dropblock.command import terminal


def test_parsed_size():
    assert terminal.parsed_size("SIZE", "28") == 28
    assert terminal.parsed_size("SIZE", "28x7X3") == [28, 7, 3]
    assert terminal.parsed_size("SIZE", "28×7") == [28, 7]
    for bad in ("", "x", "28x", "2.5", "-3", "28 28", "٣"):
        with pytest.raises(ValueError, match="^SIZE must be whole numbers joined by x"):
            terminal.parsed_size("SIZE", bad)


def test_parsed_block():
    assert terminal.parsed_block("BLOCK", "7") == 7
    assert terminal.parsed_block("BLOCK", "30%") == "30%"
    assert terminal.parsed_block("BLOCK", "12.5%x3") == ["12.5%", 3]
    for bad in ("", "x", "28x", "2.5", "-3", "%", "30 %"):
        with pytest.raises(ValueError, match="^BLOCK must be whole numbers joined by x"):
            terminal.parsed_block("BLOCK", bad)


def test_unwrapped():
    assert (
        terminal.unwrapped("One,\n    and more.\n\n    [b]two[/]  and\n    three\n    ")
        == "One, and more.\n\n[b]two[/]  and three"
    )


def test_one_of():
    assert terminal.one_of("--mode", "eager", ("eager", "compiled")) == "eager"
    with pytest.raises(ValueError, match="^--mode must be one of eager, compiled, got 'fast'"):
        terminal.one_of("--mode", "fast", ("eager", "compiled"))


def test_one_thread_gives_the_others_back():
    threads = torch.get_num_threads()
    with terminal.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


HEADER = ("block", "γ", "seed probability", "± of it")
ROWS = [("7×7", "0.0035", "10.0 %", "0.1"), ("a long\nname", "0.1", "100 %", "12.5")]
WHOLE = """
 block        γ  seed probability  ± of it
 ─────────────────────────────────────────
 7×7     0.0035            10.0 %      0.1
 a long     0.1             100 %     12.5
 name

"""
WRAPPED = """
                        seed  ± of
 block        γ  probability    it
 ─────────────────────────────────
 7×7     0.0035       10.0 %   0.1
 a long     0.1        100 %  12.5
 name

"""
LISTED = """
 block 7×7
   γ                 0.0035
   seed probability  10.0 %
   ± of it           0.1
 block a longname
   γ                 0.1
   seed probability  100 %
   ± of it           12.5

"""


@pytest.mark.parametrize(
    ("width", "text"), [(80, WHOLE), (42, WHOLE), (41, WRAPPED), (34, WRAPPED), (33, LISTED), (9, LISTED)]
)
def test_a_table_fits_whatever_the_width(width, text):
    out = io.StringIO()
    terminal.print_table(Console(file=out, width=width), HEADER, ROWS)
    assert out.getvalue() == text


def test_a_reader_that_stops_reading_is_no_error():
    @terminal.one_line_errors
    def command():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):  # for which typer exits silently
        command()
