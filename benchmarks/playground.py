"""The playground in a browser: its picture in the README, and the latency of a change.

    python benchmarks/playground.py screenshot docs/images/playground.png
    python benchmarks/playground.py time

Both need the extra `test` and an installed Chromium; they start the playground on a free port and end it.
"""

from __future__ import annotations

import argparse
import io
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from torch_dropblock.bench.measure import processor

WIDTH, HEIGHT = 1440, 900
COLOURS = 256
CHANGES = 30  # per control

# ms from the change of a slider to the second frame after the new picture is decoded, when it is visible
TIMED = """([control, value]) => new Promise(done => {
    const slider = document.querySelector(`#${control} input[type=range]`)
    const source = () => document.querySelector("#mask img")?.src
    const before = source()
    const start = performance.now()
    const look = () => {
        if (!source() || source() === before) return setTimeout(look, 2)
        document.querySelector("#mask img").decode().then(() => requestAnimationFrame(
            () => requestAnimationFrame(() => done(performance.now() - start))))
    }
    slider.value = value
    slider.dispatchEvent(new Event("input", {bubbles: true}))
    look()
})"""


@contextmanager
def opened() -> Iterator[Page]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    command = [sys.executable, "-m", "torch_dropblock", "playground", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as playground:
        try:
            assert playground.stdout
            url = next(word for word in playground.stdout.readline().split() if word.startswith("http"))
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
                page.goto(url)
                for part in ("#mask img", "#curve", "#code .cm-line >> nth=0", "#schedule"):
                    page.locator(part).wait_for()
                yield page
                browser.close()
        finally:
            playground.terminate()


def screenshot(page: Page, out: Path) -> None:
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    # the photograph dominates the file; few colours make it a third of the size
    image.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1024:.0f} KB")


def time(page: Page) -> None:
    moves = {
        "height": [str(3 + at % 7) for at in range(CHANGES)],
        "keep-prob": [f"{0.2 + 0.02 * at:.2f}" for at in range(CHANGES)],
        "map": [str(30 + 3 * at) for at in range(CHANGES)],
    }
    page.evaluate(TIMED, ["height", "2"])  # warm-up: the first change takes longer
    for control, values in moves.items():
        took = []
        for value in values:
            took.append(page.evaluate(TIMED, [control, value]))
            page.wait_for_timeout(100)
        took.sort()
        middle, most = statistics.median(took), took[round(0.95 * CHANGES) - 1]
        print(f"{control}: median {middle:.0f} ms, 95 of 100 within {most:.0f} ms, longest {took[-1]:.0f} ms")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "gradio"))
    browser = page.context.browser
    print(f"{processor()}, python {platform.python_version()}, {versions}, Chromium {browser and browser.version}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("screenshot").add_argument("out", type=Path)
    parts.add_parser("time")
    arguments = parser.parse_args()
    with opened() as page:
        if arguments.part == "time":
            time(page)
        else:
            screenshot(page, arguments.out)


if __name__ == "__main__":
    main()
