"""The documentation: its figures, the check of a built site, and the site in a browser, opened from the file system.

What needs the extra `docs`, or Chromium, is skipped, with the reason printed, where they are not there.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from helpers.browser import chromium

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))


def script(name):
    spec = importlib.util.spec_from_file_location(f"website_{name}", ROOT / "website" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    script("figures").main(["--out", str(folder)])
    return folder


def test_one_command_draws_every_figure_of_the_documentation(drawn):
    shown = {name for page in PAGES for name in re.findall(r"]\(images/([^)]+)\)", page.read_text(encoding="utf-8"))}
    committed = {path.name for path in (ROOT / "docs" / "images").glob("*.png")}
    # a screenshot needs a browser, and a comparison hours of training: each has a command of its own
    elsewhere = {name for name in committed if name.startswith(("playground", "compare"))}
    assert shown <= committed
    assert committed - elsewhere == {path.name for path in drawn.iterdir()}


def test_the_committed_figures_are_of_the_size_that_is_drawn(drawn):
    """Pixels differ with matplotlib's version, and its rounding; one of another size was laid out by other code."""
    from PIL import Image

    for path in drawn.iterdir():
        with Image.open(path) as new, Image.open(ROOT / "docs" / "images" / path.name) as committed:
            assert new.size == pytest.approx(committed.size, abs=1), path.name


# --- the check of a built site -----------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><img src="i.png" alt="a picture">', encoding="utf-8")
    (tmp_path / "i.png").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="a.html#top">', None),
        ('<a href="https://arxiv.org/abs/1810.12890">', None),
        ('<link rel="canonical" href="https://a.example/">', None),
        ('<script src="data:text/javascript,1"></script>', None),
        ('<a href="none.html">', "leads to no file"),
        ('<a href="a.html#none">', "leads to no anchor"),
        ('<a href="#none">', "leads to no anchor"),
        ('<a href="/a.html">', "leads to no file"),
        ('<img src="none.png" alt="none">', "is not there"),
        ('<img src="i.png">', "no alternative text"),
        ('<script src="https://cdn.example/x.js"></script>', "fetched from outside"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "fetched from outside"),
        ('<img src="https://badges.example/x.svg" alt="a badge">', "fetched from outside"),
        ("<style>a { background: url(https://a.example/b.png) }</style>", "fetched from outside"),
        ('<p style="background: url(none.png)">', "is not there"),
        ('<autoref identifier="torch_dropblock.none">', "was not resolved"),
    ],
)
def test_a_problem_of_a_page_is_found(site, html, problem):
    (site / "b.html").write_text(html, encoding="utf-8")
    found = list(script("build").problems(site))
    assert [problem in line for line in found] == ([True] if problem else [])


@pytest.mark.parametrize("style", ['@import "https://a.example/b.css";', "a { src: url('//a.example/b.woff2') }"])
def test_a_problem_of_a_style_is_found(site, style):
    (site / "c.css").write_text(style, encoding="utf-8")
    assert ["fetched from outside" in line for line in script("build").problems(site)] == [True]


def test_no_site_is_a_problem(tmp_path):
    assert list(script("build").problems(tmp_path))


# --- the site ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the site, since other processes may run other tests of this file, and build it too."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip('what builds the site is not installed: pip install -e ".[docs]"')
    command = [sys.executable, ROOT / "website" / "build.py"]
    with FileLock(tmp_path_factory.getbasetemp().parent / "site.lock"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return shutil.copytree(ROOT / "site", tmp_path_factory.mktemp("built") / "site")


def test_every_page_is_in_the_site(built):
    assert {path.stem for path in PAGES} <= {path.stem for path in built.glob("*.html")}


def test_formulas_are_drawn_by_the_browser_itself(built):
    page = (built / "mathematics.html").read_text(encoding="utf-8")
    assert page.count("<math") > 30
    assert "$" not in re.sub(r"<(script|code)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_a_wide_table_names_the_column_in_each_cell():
    """For a telephone; code in a heading is set aside by the extension that colours it."""
    markdown = pytest.importorskip("markdown", reason="it is installed with the extra docs")
    extensions = ["tables", "pymdownx.inlinehilite", script("stacked").makeExtension()]
    table = '| shape | `p="a"`, % | T |\n| --- | --- | --- |\n| 7×7 | 1 | |\n'
    page = markdown.markdown(table, extensions=extensions)
    assert '<td data-column="p=&quot;a&quot;, %">1</td>' in page
    assert "data-stacked" not in markdown.markdown("| a | b |\n| --- | --- |\n| 1 | 2 |", extensions=extensions)


@pytest.fixture(scope="module")
def browser(built):
    with chromium() as browser:
        yield browser


@contextmanager
def opened(browser, built, name, width=1440):
    """A page of the site in a window of this width; a narrow one is a telephone's."""
    context = browser.new_context(viewport={"width": width, "height": 900}, is_mobile=width < 500)
    page = context.new_page()
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("requestfailed", lambda request: page.wrong.append(f"{request.failure} {request.url}"))
    page.on("console", lambda said: said.type in ("error", "warning") and page.wrong.append(said.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto((built / f"{name}.html").as_uri(), wait_until="networkidle")
    yield page
    context.close()


# what reaches beyond the window, unless it or what holds it is scrolled by itself
BEYOND = """() => {
    const width = document.documentElement.clientWidth;  // a telephone zooms out, and innerWidth grows, if it must
    const scrolls = e => e && e !== document.body &&
        (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    return [...document.querySelectorAll('.md-content *')]
        .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e))
        .map(e => e.outerHTML.slice(0, 120));
}"""
# tables that are wider than the text, and so scrolled
WIDE = """() => [...document.querySelectorAll('.md-content table')]
    .filter(t => t.getBoundingClientRect().width > t.closest('article').getBoundingClientRect().width + 1)
    .map(t => t.innerText.slice(0, 120))"""


def assert_nothing_is_cut_off(page):
    """Every table fits; code, formulas and figures that are wider than the page are scrolled by themselves."""
    assert page.evaluate(BEYOND) == []
    assert page.evaluate(WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("name", [path.stem for path in PAGES])
def test_a_page_opens_without_errors_and_without_the_network(browser, built, name):
    with opened(browser, built, name) as page:
        assert page.asked
        assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
        assert page.wrong == []
        assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
        assert_nothing_is_cut_off(page)


@pytest.mark.parametrize("name", [path.stem for path in PAGES])
def test_a_page_fits_a_telephone(browser, built, name):
    with opened(browser, built, name, width=420) as page:
        assert_nothing_is_cut_off(page)
        page.set_viewport_size({"width": 390, "height": 900})
        assert_nothing_is_cut_off(page)


# what readers search for, and the page or section that must be among the first results
SEARCHES = {
    "uncertainty": "uncertainty.html",
    "mc_predict": "api.html#torch_dropblock.mc_predict",
    "DDP": "schedule.html#several-processes-ddp-fsdp",
    "several GPUs": "schedule.html#several-processes-ddp-fsdp",
    "AMP": "schedule.html#mixed-precision-amp",
    "resume": "schedule.html#save-and-resume",
    "checkpoint": "placement.html#checkpoints-are-those-of-the-plain-network",
    "Lightning": "lightning.html",
    "Hugging Face": "trainers.html#hugging-face-trainer",
    "Ultralytics": "trainers.html#ultralytics",
    "ResNet": "recipes.html#resnet",
    "EfficientNet": "recipes.html#efficientnet",
    "MobileNet": "recipes.html#mobilenetv3",
    "ConvNeXt": "recipes.html#convnext",
    "YOLO": "recipes.html#yolo",
    "U-Net": "recipes.html#u-net",
    "ViT": "recipes.html#vision-transformer-vit",
    "few-shot": "recipes.html#few-shot-resnet-12",
    "nn.Dropout": "migration.html#nndropout",
    "torchvision": "migration.html#torchvision",
    "KerasCV": "migration.html#kerascv",
    "mmdetection": "migration.html#mmdetection",
    "macOS": "performance.html#plain-pytorch-without-a-compiler-on-macos-and-windows",
}


@pytest.fixture(scope="module")
def search(browser, built):
    """Search the site, opened as a file, for which browsers start no Worker; return what is found, best first."""
    with opened(browser, built, "index") as page:
        dialog = page.get_by_role("dialog")
        box = dialog.locator("input")
        for _ in range(50):  # until the script of the search is there to hear the key
            page.keyboard.press("/")
            if box.is_visible():
                break
            page.wait_for_timeout(100)

        def search(words):
            box.fill("")
            dialog.locator("ol a").first.wait_for(state="detached")
            box.fill(words)
            dialog.locator("ol a").first.wait_for()
            return [link.partition("/site/")[2].partition("?")[0] for link in links(dialog)]

        yield search


def links(dialog):
    return dialog.locator("ol a").evaluate_all("links => links.map(link => link.href)")


@pytest.mark.parametrize(("words", "wanted"), SEARCHES.items(), ids=list(SEARCHES))
def test_the_search_finds(search, words, wanted):
    assert wanted in search(words)[:3]
