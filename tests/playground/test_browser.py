"""The playground in a real browser: what is shown for each control, and that nothing goes wrong or leaves here."""

import dataclasses
import itertools
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.browser import Server, Visitor, chromium
from torch_dropblock.playground.view import Settings, builtin_levels, draw

PATIENCE = 60_000  # milliseconds, for a busy machine; what a quiet one takes is in docs/playground.md


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploads")
    server = Server(TMPDIR=str(folder))
    server.folder = folder
    yield server
    still_open = Visitor(browser, server.url)
    code, said = server.interrupt(signal.SIGINT)
    still_open.close()
    assert (code, said) == (0, "")  # no call to another machine, no traceback
    assert list(folder.iterdir()) == []


@pytest.fixture
def visit(browser, server):
    visitors = []

    def visit(**options):
        visitors.append(Visitor(browser, server.url, **options))
        return visitors[-1]

    yield visit
    wrong = [line for visitor in visitors for line in visitor.wrong]
    for visitor in visitors:
        visitor.close()
    assert wrong == []


@pytest.fixture
def visitor(visit):
    return visit()


def wait_for(visitor, settings, levels=None):
    """Until the page shows what the library computes for these settings; then look at every part of it."""
    view = draw(settings, builtin_levels() if levels is None else levels)
    wanted = {"γ: seed probability": f"{view.gamma:.4g}", "Kept: scaled by": f"{view.scale:.3f}"}
    script = """([gamma, scale, code]) => {
        const shown = [...document.querySelectorAll("#numbers dd")].map(cell => cell.textContent)
        const lines = [...document.querySelectorAll("#code .cm-line")].map(line => line.textContent).join("\\n")
        return shown[0] === gamma && shown[5] === scale && lines === code
    }"""
    visitor.page.wait_for_function(script, arg=[*wanted.values(), settings.code()], timeout=PATIENCE)
    assert visitor.numbers().items() >= wanted.items()
    np.testing.assert_array_equal(visitor.picture("#mask"), 255 * view.kept.transpose(1, 2, 0))
    check_code(visitor.copied(), view)
    return view


def check_code(code, view):
    """The copied code runs, and its layer drops what the page shows."""
    names = {}
    exec(code, names)
    assert repr(names["layer"]) == repr(view.settings.layer())
    torch.manual_seed(view.settings.seed)
    y = names["layer"](torch.ones(1, 3, *view.size))[0]
    np.testing.assert_array_equal(y != 0, view.kept)


def check_seen(image):
    """There is a picture, not a blank area."""
    assert image.std(axis=(0, 1)).min() > 5


def test_what_is_shown_first(visitor):
    view = wait_for(visitor, Settings())
    assert visitor.page.title() == "DropBlock playground"
    np.testing.assert_array_equal(visitor.picture("#original"), builtin_levels())
    for part in ("#original img", "#stack", "#masks", "#rates img >> nth=0", "#schedule svg"):
        check_seen(visitor.rendered(part))
    numbers = visitor.numbers()
    assert numbers["Dropped: requested"] == numbers["Dropped: expected"] == "30.0 %"
    mean, error = view.measured
    assert numbers[f"Dropped: in {len(view.shares)} draws"] == f"{100 * mean:.2f} ± {100 * error:.2f} %"
    assert "corner 98.8 %, centre 54.2 %, mean 70.0 %" in visitor.noted("rates")


SIZES = [(512, 512), (300, 700), (900, 40), (1, 1)]
SEEN = [Settings(), Settings(map_side=7), Settings(method="Dropout")]
FEW = [(SIZES[0], SEEN[0]), (SIZES[1], SEEN[1]), (SIZES[2], SEEN[2]), (SIZES[3], SEEN[1])]


@pytest.mark.parametrize(
    "cases", [FEW, pytest.param([*itertools.product(SIZES, SEEN)], marks=pytest.mark.sweep)], ids=["few", "all"]
)
def test_what_is_seen_is_the_picture_under_the_mask(visitor, tmp_path, cases):
    """Unit by unit, in the middle of each, in the pixels of the screen."""
    for i, (size, settings) in enumerate(cases):
        shades = Image.radial_gradient("L").resize(size).point(lambda level: 155 + level // 3)
        shades.convert("RGB").save(tmp_path / f"{i}.png")
        upload(visitor, tmp_path / f"{i}.png")
        levels = wait_for_original(visitor, f"{i}.png")
        np.testing.assert_array_equal(visitor.picture("#stack"), levels)
        visitor.slide("map", settings.map_side)
        visitor.choose(settings.method)
        view = wait_for(visitor, settings, levels)
        seen, whole = visitor.rendered("#stack"), visitor.rendered("#original img")
        assert seen.shape == whole.shape
        rows, columns = (
            ((np.arange(units) + 0.5) * side / units).astype(int)
            for side, units in zip(seen.shape[:2], view.size, strict=True)
        )
        seen, whole = (image[rows][:, columns].transpose(2, 0, 1).astype(int) for image in (seen, whole))
        assert abs(seen - whole * view.kept).max() <= 8


def test_each_control(visitor):
    """Moved one after the other, in a page that stays open."""
    now, before = Settings(), visitor.rendered("#stack")
    moves = [
        (lambda: visitor.slide("height", 3), {"block_size": (3, 3)}),
        (lambda: visitor.page.locator("#square input").uncheck(), {}),
        (lambda: visitor.slide("width", 15), {"block_size": (3, 15)}),
        (lambda: visitor.page.locator("#square input").check(), {"block_size": (3, 3)}),
        (lambda: visitor.page.locator("#square input").uncheck(), {}),
        (lambda: visitor.slide("width", 9), {"block_size": (3, 9)}),
        (lambda: visitor.slide("keep-prob", 0.5), {"keep_prob": 0.5}),
        (lambda: visitor.choose("paper"), {"rate": "paper"}),
        (lambda: visitor.page.locator("#share input").check(), {"share_channels": True}),
        (lambda: visitor.slide("map", 64), {"map_side": 64}),
        (lambda: visitor.page.locator("#seed input").fill("12"), {"seed": 12}),
        (lambda: visitor.page.locator("#again").click(), {"seed": 13}),
        (lambda: visitor.slide("progress", 0.25), {"progress": 0.25}),
        (lambda: visitor.choose("cosine"), {"curve": "cosine"}),
        (lambda: visitor.choose("constant"), {"curve": "constant"}),
        (lambda: visitor.choose("Dropout"), {"method": "Dropout"}),
        (lambda: visitor.choose("SpatialDropout"), {"method": "SpatialDropout"}),
        (lambda: visitor.choose("DropBlock"), {"method": "DropBlock"}),
    ]
    for move, change in moves:
        move()
        now = dataclasses.replace(now, **change)
        wait_for(visitor, now)
        after = visitor.rendered("#stack")
        assert (after != before).any() or not change
        before = after
    check_seen(visitor.rendered("#original img"))
    assert visitor.noted("schedule") == "After 25 % of the training: 0.5; at the end: 0.5."


# --- by hand -----------------------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(visitor):
    """Tab reaches every control in the order in which they are seen, and arrows move a slider."""
    reached = []
    for _ in range(60):
        visitor.page.keyboard.press("Tab")
        script = "document.activeElement.closest('[id]:not([id^=range])')?.id || document.activeElement.ariaLabel"
        reached.append(visitor.page.evaluate(script))
    order = ["upload", "builtin", "method", "square", "height", "keep-prob", "rate", "share", "map", "seed", "again"]
    order += ["progress", "curve", "code"]
    first = reached.index("upload")
    places = [reached.index(name, first) for name in order]
    assert places == sorted(places)
    visitor.page.locator("#height input[type=range]").press("ArrowRight")
    wait_for(visitor, Settings(block_size=(8, 8)))


def test_a_storm_ends_where_the_slider_is(visitor):
    for keep_prob in range(60, 9, -1):
        visitor.slide("keep-prob", keep_prob / 100)
    wait_for(visitor, Settings(keep_prob=0.1))


def test_a_number_that_cannot_be(visitor):
    """It is said, the picture stays, and a number that can be goes on."""
    height, keep_prob, units, seed = (
        visitor.page.locator(f"#{name} input:not([type=range])") for name in ("height", "keep-prob", "map", "seed")
    )
    now = Settings(block_size=(3, 3))
    visitor.slide("height", 3)
    wait_for(visitor, now)
    for box, typed, said, change in [
        (height, "2.5", "block height must be an int of at least 1, got 2.5 of type float", {"block_size": (5, 5)}),
        (height, "-3", "block height must be an int of at least 1, got -3", {"block_size": (7, 7)}),
        (keep_prob, "", "keep_prob is empty", {"keep_prob": 0.5}),
        (keep_prob, "7", "keep_prob must be a number in [0, 1], got 7", {"keep_prob": 1.0}),
        (units, "4000", "map_side must be at most 128, got 4000", {"map_side": 14}),
        (seed, "-1", "seed must be an int of at least 0, got -1", {"seed": 1}),
        (seed, "", "seed is empty", {"seed": 2}),
    ]:
        box.fill(typed)
        visitor.page.locator("#message").get_by_text(f"Not done: {said}", exact=True).wait_for(timeout=PATIENCE)
        kept = draw(now, builtin_levels()).kept
        np.testing.assert_array_equal(visitor.picture("#mask"), 255 * kept.transpose(1, 2, 0))
        now = dataclasses.replace(now, **change)
        (value,) = change.values()
        box.fill(str(value[0] if isinstance(value, tuple) else value))
        visitor.page.locator("#message p").wait_for(state="detached", timeout=PATIENCE)
        wait_for(visitor, now)


def test_what_a_method_has_not_cannot_be_moved(visitor):
    visitor.choose("Dropout")
    own = [
        "#square input",
        "#height input[type=range]",
        "#rate input",
        "#share input",
        "#progress input",
        "#curve input",
    ]
    for control in own:
        visitor.page.wait_for_function("css => document.querySelector(css).disabled", arg=control, timeout=PATIENCE)
    assert visitor.page.locator("#keep-prob input[type=range]").is_enabled()
    visitor.choose("DropBlock")
    for control in own:
        visitor.page.wait_for_function("css => !document.querySelector(css).disabled", arg=control, timeout=PATIENCE)


# --- pictures ----------------------------------------------------------------------------------------------------


def upload(visitor, path):
    visitor.page.locator("#controls input[type=file]").set_input_files(path)


def wait_for_original(visitor, name):
    visitor.page.locator("#original figcaption").get_by_text(name, exact=True).wait_for(timeout=PATIENCE)
    return visitor.picture("#original")


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "my cat, one.png"
    Image.linear_gradient("L").resize((300, 150)).convert("RGB").save(path)
    return path


def test_an_uploaded_picture_and_back(visitor, cat, server):
    upload(visitor, cat)
    levels = wait_for_original(visitor, cat.name)
    assert levels.shape == (256, 512, 3)
    assert wait_for(visitor, Settings(), levels).size == (14, 28)
    visitor.slide("height", 9)
    wait_for(visitor, Settings(block_size=(9, 9)), levels)
    assert [file for file in server.folder.rglob("*") if file.is_file() and file.stat().st_size] == []
    visitor.page.locator("#builtin").click()
    wait_for_original(visitor, "Grace Hopper, the built-in photograph")
    wait_for(visitor, Settings(block_size=(9, 9)))


def test_no_picture(visitor, cat, tmp_path):
    """What was shown stays, and the next picture is taken."""
    levels, half = builtin_levels(), cat.read_bytes()[: cat.stat().st_size // 2]
    for name, content, said in [
        ("notes.txt", b"no picture", "notes.txt is not an image that Pillow can read"),
        ("empty.png", b"", "empty.png is not an image that Pillow can read"),
        ("cut.png", half, "cut.png cannot be read; it may be damaged or cut short"),
    ]:
        (tmp_path / name).write_bytes(content)
        upload(visitor, tmp_path / name)
        visitor.page.locator("#message p").wait_for(timeout=PATIENCE)
        assert visitor.page.locator("#message").inner_text().startswith(f"Not done: {said}")
        wait_for(visitor, Settings(), levels)
        upload(visitor, cat)
        levels = wait_for_original(visitor, cat.name)
        visitor.page.locator("#message p").wait_for(state="detached", timeout=PATIENCE)


def test_pictures_of_all_kinds(visitor, tmp_path):
    """How each is converted is in test_playground.py."""
    exif = Image.Exif()
    exif[0x112] = 6
    red, frames = Image.new("RGB", (30, 20), "red"), [Image.new("RGB", (30, 20), "blue")]
    kinds = {
        "cmyk.jpg": (red.convert("CMYK"), {}, (341, 512)),
        "transparent.png": (Image.new("RGBA", (30, 20)), {}, (341, 512)),
        "deep.png": (Image.fromarray(np.full((20, 30), 40_000, np.uint16)), {}, (341, 512)),
        "moving.gif": (red, {"save_all": True, "append_images": frames}, (341, 512)),
        "turned.jpg": (red, {"exif": exif}, (512, 341)),
        "one pixel.png": (red.resize((1, 1)), {}, (512, 512)),
        "line.png": (red.resize((20_000, 1)), {}, (1, 512)),
        "50 megapixels.png": (red.resize((8_660, 5_774)), {}, (341, 512)),
    }
    for name, (image, options, size) in kinds.items():
        image.save(tmp_path / name, **options)
        upload(visitor, tmp_path / name)
        levels = wait_for_original(visitor, name)
        assert levels.shape == (*size, 3), name
        wait_for(visitor, Settings(), levels)
        assert min(visitor.rendered("#stack").shape[:2]) >= 16, name


def test_two_visitors_do_not_see_each_others_pictures(visit, tmp_path):
    visitors = {}
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
        visitors[colour] = visit(apart=True)
        upload(visitors[colour], tmp_path / f"{colour}.png")
    third = visit(apart=True)
    wait_for_original(third, "Grace Hopper, the built-in photograph")
    for seed, (colour, visitor) in enumerate(visitors.items(), 1):
        levels = wait_for_original(visitor, f"{colour}.png")
        assert (levels == np.array(Image.new("RGB", (1, 1), colour))).all()
        visitor.page.locator("#seed input").fill(str(seed))
        wait_for(visitor, Settings(seed=seed), levels)
    visitor = visitors["red"]
    visitor.page.locator("#again").click()
    wait_for(visitor, Settings(seed=2), visitor.picture("#original"))
    third.slide("height", 3)
    wait_for(third, Settings(block_size=(3, 3)))
    third.page.reload()
    wait_for_original(third, "Grace Hopper, the built-in photograph")


# --- how it looks ------------------------------------------------------------------------------------------------

BOXES = """selector => [...document.querySelectorAll(selector)].filter(one => one.checkVisibility()).map(element => {
    const box = element.getBoundingClientRect()
    return [element.textContent.trim(), box.left, box.right, element.scrollWidth - element.clientWidth]
})"""


def test_nothing_is_cut_off(visitor):
    page = visitor.page
    page.locator("#square input").uncheck()
    page.locator("#width").wait_for(timeout=PATIENCE)
    for width in (360, 570, 900, 1281, 2200):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ((_, first, last, _),) = page.evaluate(BOXES, "#layout")
        assert last - first >= min(width, 1472) - 64, width  # the window is used
        for text, left, right, hidden in page.evaluate(BOXES, "dt, dd, h1, h2, p, label, button, figure, svg"):
            assert first - 1 <= left <= right <= last + 1, (width, text)
            assert hidden <= 1, (width, text)
        left, right = (page.locator(part).bounding_box() for part in ("#original img", "#stack"))
        assert left["y"] == right["y"], width
        assert left["x"] + left["width"] < right["x"]


def test_in_a_narrow_window_the_pictures_stay_while_controls_move(visit):
    visitor = visit(viewport={"width": 390, "height": 844})
    visitor.slide("progress", 0.5)
    visitor.page.locator("#progress").scroll_into_view_if_needed()
    wait_for(visitor, Settings(progress=0.5))
    visitor.page.locator("#seed").scroll_into_view_if_needed()
    box = visitor.page.locator("#stack").bounding_box()
    assert 0 <= box["y"] < box["y"] + box["height"] <= 300
    # labels that are scrolled under the pictures are not seen on them
    label = visitor.page.locator("#seed [data-testid=block-info]")
    label.evaluate("label => window.scrollBy(0, label.getBoundingClientRect().top - 100)")
    middle = label.bounding_box()
    assert middle["y"] < box["y"] + box["height"]
    over = "([x, y]) => document.elementFromPoint(x, y).closest('#pictures') !== null"
    assert visitor.page.evaluate(over, [middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visit, scheme):
    """Contrast of 4.5 to 1 at least, as WCAG asks for; the code's colours are Gradio's."""
    page = visit(color_scheme=scheme).page
    for text, contrast in page.evaluate(CONTRASTS):
        assert contrast >= 4.5, text


CONTRASTS = """() => {
    const parts = colour => (colour.match(/[0-9.]+/g) || []).map(Number)
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = parts(getComputedStyle(element).backgroundColor)
            if (colour.length === 3 || colour[3] > 0.9) return colour
        }
        return [255, 255, 255]
    }
    return [...document.querySelectorAll("#heading, #layout")].flatMap(part => [...part.querySelectorAll("*")])
        .filter(element => !element.closest(".cm-editor") && element.checkVisibility()
            && [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
        .map(element => {
            const style = getComputedStyle(element)
            const [a, b] = [light(parts(element.closest("svg") ? style.fill : style.color)), light(behind(element))]
            return [element.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]
        })
}"""
