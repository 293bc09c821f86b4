"""The command as it is called: what it prints, what it writes, what it says when something is wrong."""

import os
import re
import subprocess
import sys

import matplotlib.figure
import pytest
import torch
from PIL import Image

from helpers.command import call, check_texts, complaint, succeed, table_rows
from torch_dropblock import __version__, drop_block_mask, expected_keep_rate, keep_rate_map, seed_probability
from torch_dropblock.__main__ import main
from torch_dropblock.command import terminal
from torch_dropblock.command.app import app
from torch_dropblock.pictures import demo
from torch_dropblock.pictures.draws import mask_of, share_dropped
from torch_dropblock.pictures.wording import percent


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    Image.linear_gradient("L").resize((48, 64)).save(path)
    return path


# --- the command itself ------------------------------------------------------------------------------------------


def test_version():
    assert succeed("--version") == f"torch-dropblock {__version__}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["demo"], ["show"], ["rate"], ["summary"], ["bench"], ["playground"]])
def test_help_has_examples_and_fits_a_terminal(command, flag):
    out = succeed(*command, flag)
    assert "Examples" in out
    assert "torch-dropblock " + " ".join(command) in out
    assert max(map(len, out.splitlines())) <= 80


def test_no_arguments_print_the_help():
    _, out, err = call()
    assert "Commands" in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib", "PIL", "numpy"])
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, missing):
    for name in [
        name for name in sys.modules if name.startswith(("torch_dropblock.command.", "torch_dropblock.pictures."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in {missing, *(name for name in sys.modules if name.startswith(f"{missing}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    line = complaint("demo", "--out", tmp_path)
    assert line == f'{missing} is not installed; run: pip install "torch-dropblock[cli]"'


def test_a_missing_module_that_no_extra_brings_is_not_hidden(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch_dropblock.command.app")
    monkeypatch.setitem(sys.modules, "torch_dropblock.pictures.wording", None)
    monkeypatch.setattr(sys, "argv", ["torch-dropblock", "rate", "5"])
    with pytest.raises(ModuleNotFoundError, match=r"torch_dropblock\.pictures\.wording"):
        main()


def test_in_a_pipe_that_knows_only_ascii_with_a_backend_that_is_not_installed(cat, tmp_path):
    """Jupyter and Colab set a backend of theirs for each command that a notebook calls."""
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "TERM": "xterm-256color",
        "MPLBACKEND": "module://not_installed.backend_inline",
    }
    for name in ("COLUMNS", "FORCE_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "torch_dropblock", "show", cat, "-o", "out.png"]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"\x1b" not in run.stdout
    assert b"15?15" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_version_and_help_wait_for_nothing():
    """The whole of each takes less than half a second; PyTorch alone takes three."""
    code = """
import contextlib, io, sys
from torch_dropblock.__main__ import main
from torch_dropblock.command.app import app
from torch_dropblock.pictures.wording import percent

for words in ("--version", "--help", *(f"{name} --help" for name in sys.argv[1:])):
    sys.argv = ["torch-dropblock", *words.split()]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        main()
    assert "torch-dropblock" in out.getvalue(), words
    imported = {"torch", "matplotlib", "PIL", "numpy", "lightning", "gradio"} & set(sys.modules)
    assert not imported, (words, imported)
"""
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert len(names) == 7
    subprocess.run([sys.executable, "-c", code, *names], check=True, timeout=60)


def test_a_terminal_that_does_not_know_its_width():
    assert succeed("rate", "28", columns=0) == succeed("rate", "28")


def test_a_narrow_terminal_cuts_no_number(cat, tmp_path):
    for arguments in (("rate", "4000000x4000000", "-b", "13"), ("show", cat, "-o", tmp_path / "out.png")):
        for columns in (30, 48):
            wide, narrow = succeed(*arguments), succeed(*arguments, columns=columns)
            numbers = set(re.findall("[0-9.]+", wide))
            assert len(numbers) >= 5
            assert numbers == set(re.findall("[0-9.]+", narrow))
            assert max(len(line) for line in narrow.splitlines() if ".png" not in line) <= columns


# --- rate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "typed_block", "keep_prob", "size", "block"),
    [
        ("28x28", "7", 0.9, (28, 28), (7, 7)),
        ("40X10", "15x9", 0.5, (40, 10), (15, 9)),
        ("14×14", "13", 0.99, (14, 14), (13, 13)),
        ("100", "5", 0.9, (100,), (5,)),
        ("8x16x16", "3x5x5", 0.75, (8, 16, 16), (3, 5, 5)),
        ("7x7", "7", 0.999, (7, 7), (7, 7)),
        ("30x3", "1", 0.9, (30, 3), (1, 1)),
        ("14x10", "25%x3", 0.9, (14, 10), (3, 3)),
    ],
)
def test_rate_states_what_the_library_computes(typed, typed_block, keep_prob, size, block):
    rows = table_rows(succeed("rate", typed, "--block-size", typed_block, "--keep-prob", keep_prob))
    for column, kind in ((1, "exact"), (2, "paper")):
        gamma = seed_probability(size, block, keep_prob, kind)
        everywhere = 1 - keep_rate_map(size, block, gamma)
        expected = (1 - keep_prob, 1 - expected_keep_rate(size, block, gamma), everywhere.max(), everywhere.min())
        assert [row[column] for row in rows] == [f"{gamma:.4g}", *(percent(float(share)) for share in expected)]


def test_rate_of_a_map_too_large_to_hold():
    assert "4000000×4000000" in succeed("rate", "4000000x4000000")


def test_rate_says_that_the_block_was_clamped():
    assert "The block of 7×20 was clamped to 7×14" in succeed("rate", "14x14", "-b", "7x20")
    assert "The block of 50%×20 was clamped to 7×14" in succeed("rate", "14x14", "-b", "50%x20")
    assert "clamped" not in succeed("rate", "14x14", "-b", "14")
    assert "clamped" not in succeed("rate", "14x14", "-b", "100%")
    assert "must be whole numbers joined by x, such as 7x7, or shares" in complaint("rate", "14", "-b", "5%5")
    assert "block_size must be" in complaint("rate", "14", "-b", "0%")


@pytest.mark.parametrize("size", ["", "x", "28x", "28x28x", "a", "2.5", "28,28", "1e3", "28 x 28"])
def test_rate_of_no_size(size):
    assert complaint("rate", size) == f"SIZE must be whole numbers joined by x, such as 28x28, got {size!r}"


@pytest.mark.parametrize("size", ["0", "28x0", "2x2x2x2"])
def test_rate_of_an_impossible_size(size):
    assert complaint("rate", size).startswith("SIZE must be a positive int or a sequence of 1 to 3 of them, got")


@pytest.mark.parametrize("block_size", ["0", "-3", "7.5", "3x3x3", "7x", "big"])
def test_a_bad_block_size(block_size, cat):
    assert complaint("rate", "28x28", "--block-size", block_size).startswith("block_size must be ")
    assert complaint("show", cat, "--block-size", block_size).startswith("block_size must be ")


@pytest.mark.parametrize("keep_prob", ["1.5", "-0.1", "nan", "inf", "high", ""])
def test_a_bad_keep_prob(keep_prob, cat):
    assert complaint("rate", "28x28", "--keep-prob", keep_prob).startswith("keep_prob must be a number in [0, 1]")
    assert complaint("show", cat, "--keep-prob", keep_prob).startswith("keep_prob must be a number in [0, 1]")


# --- demo --------------------------------------------------------------------------------------------------------

PICTURES = ["ones.png", "photo.png", "block-sizes.png", "keep-rates.png"]


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_demo(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(demo, "DRAWS", 200)
    folder = tmp_path / "not" / "there" / ("a long name " * 8)
    out = succeed("demo", "--out", folder)
    assert torch.get_num_threads() == 2
    assert out.splitlines()[-4:] == [str(folder / name) for name in PICTURES]
    assert [path for path in PICTURES if (folder / path).stat().st_size > 10_000] == PICTURES
    for figure in saved:
        check_texts(figure)

    assert max(len(line) for line in out.splitlines()[:-4]) <= 80
    rows = table_rows(out)
    assert [row[0] for row in rows] == [f"{b}×{b}" for b in demo.BLOCKS] + ["225×192"]
    for _, _, requested, expected, measured, *_ in rows:
        assert requested == expected == "30.00"
        mean, error = map(float, measured.split(" ± "))
        # half a unit in the last place of either number, which for the smallest blocks is all there is
        assert abs(mean - 30) < 4.5 * (error + 0.005) + 0.005
        assert error < 5


def test_demo_repeats_itself_with_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DRAWS", 20)
    state = torch.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        succeed("demo", "-o", tmp_path / name, "--seed", seed)
    assert torch.equal(torch.get_rng_state(), state)
    for name in PICTURES:
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b
        assert (a == c) == (name == "keep-rates.png")


def test_demo_into_a_file(cat):
    assert "cat.png" in complaint("demo", "--out", cat)


# --- show --------------------------------------------------------------------------------------------------------


def test_show_writes_beside_where_it_is_called(cat, tmp_path, monkeypatch, saved):
    monkeypatch.chdir(tmp_path)
    out = succeed("show", cat, "--block-size", "15x9")
    assert out.splitlines()[-1] == "cat-dropblock.png"
    assert (tmp_path / "cat-dropblock.png").stat().st_size > 1000
    (figure,) = saved
    check_texts(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Original", "DropBlock 15×9"]


@pytest.mark.parametrize("size", [(1, 1), (500, 20), (20, 500)])
def test_show_any_shape(tmp_path, saved, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    succeed("show", tmp_path / "a.png", "-o", tmp_path / "b.png")
    check_texts(saved[0])


def test_show_states_what_the_picture_holds(tmp_path, saved):
    Image.new("RGB", (300, 200), "white").save(tmp_path / "white.png")
    arguments = ("-b", "9", "-k", "0.5", "--rate", "paper", "-o", tmp_path / "out.png")
    (row,) = table_rows(succeed("show", tmp_path / "white.png", *arguments))
    gamma = seed_probability((200, 300), 9, 0.5, "paper")
    expected = 1 - expected_keep_rate((200, 300), 9, gamma)
    gone = (saved[0].axes[1].images[0].get_array() != 1).any(-1).mean()
    key = int(row.pop())
    assert row == ["9×9", f"{gamma:.4g}", "50.0 %", percent(expected), percent(gone)]
    assert torch.equal(
        drop_block_mask((1, 200, 300), 9, keep_prob=0.5, rate="paper", key=key)[0],
        torch.from_numpy((saved[0].axes[1].images[0].get_array() == 1).all(-1)),
    )


def test_show_takes_a_draw_near_the_mean(tmp_path):
    Image.new("RGB", (60, 60), "white").save(tmp_path / "white.png")
    ((*_, expected, drawn, key),) = table_rows(succeed("show", tmp_path / "white.png", "-o", tmp_path / "out.png"))
    shares = [percent(share_dropped(mask_of(k, (60, 60), (15, 15), 0.7))) for k in range(int(key) + 1)]
    near = [round(float(share.removesuffix(" %"))) == 30 for share in shares]
    assert expected == "30.0 %"
    assert drawn == shares[-1]
    assert near == [False] * int(key) + [True]


@pytest.mark.parametrize("option", ["--key", "--seed"])
def test_show_draws_a_key_that_is_given_as_it_falls(cat, tmp_path, option):
    pictures = []
    for key in (1, 1, 2):
        (row,) = table_rows(succeed("show", cat, option, key, "-o", tmp_path / "out.png"))
        assert row[-1] == str(key)
        assert row[-2] == percent(share_dropped(mask_of(key, (64, 48), (15, 15), 0.7)))
        pictures.append((tmp_path / "out.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize("suffix", terminal.FORMATS)
def test_show_writes_every_format_it_names(cat, tmp_path, suffix):
    target = tmp_path / f"out{suffix.upper()}"
    succeed("show", cat, "-o", target)
    assert target.stat().st_size > 1000


def test_show_says_that_the_block_was_clamped(cat, tmp_path):
    assert "was clamped to 64×48" in succeed("show", cat, "-b", "100", "-o", tmp_path / "out.png")


def test_show_what_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    assert complaint("show", tmp_path / "text.png").startswith(f"{tmp_path / 'text.png'} is not an image ")
    assert complaint("show", tmp_path / "no.png") == f"there is no file {tmp_path / 'no.png'}"
    assert complaint("show", tmp_path) == f"{tmp_path} is a folder, not an image file"


def test_show_a_picture_cut_short(cat):
    cat.write_bytes(cat.read_bytes()[:-40])
    assert "may be damaged or cut short" in complaint("show", cat)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no/such/folder/out.png", "there is no folder"),
        ("cat.png/out.png", "there is no folder"),
        ("out.docx", "must end in .png"),
        ("out", "must end in .png"),
        ("folder.png", "is a folder"),
        ("cat.png", "would be overwritten"),
    ],
)
def test_show_into_what_cannot_be_written(cat, tmp_path, target, words):
    (tmp_path / "folder.png").mkdir()
    before = cat.read_bytes()
    assert words in complaint("show", cat, "-o", tmp_path / target)
    assert cat.read_bytes() == before


def test_show_into_a_folder_that_refuses(cat, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", "out.png")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", refuse)
    assert complaint("show", cat, "-o", tmp_path / "out.png") == "out.png: Permission denied"


def test_show_with_an_unknown_rate(cat):
    assert complaint("show", cat, "--rate", "fast") == "rate must be 'exact' or 'paper', got 'fast'"
