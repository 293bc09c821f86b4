"""Uploaded pictures, as forms and without a server."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from helpers.asgi import ask_soon, form
from torch_dropblock.playground import uploads as playground_uploads
from torch_dropblock.playground.calls import UPLOAD, Refused
from torch_dropblock.playground.uploads import MOST_AT_ONCE, MOST_UNSHOWN, Uploads


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    assert list(tmp_path.iterdir()) == []  # no file outlasts its upload


@pytest.fixture
def uploads(folder):
    return Uploads(folder)


async def send(uploads, body, kind):
    async def app(scope, receive, send):
        await PlainTextResponse(await uploads.receive(Request(scope, receive)))(scope, receive, send)

    return (await ask_soon(app, "POST", "/", body, content_type=kind))[2].decode()


@pytest.fixture
def upload(uploads):
    """Upload a file, and take what comes of it."""

    def upload(save, name="cat.png", **options):
        content = save
        if callable(save):
            file = io.BytesIO()
            save(file, name.rpartition(".")[2].replace("jpg", "jpeg"), **options)
            content = file.getvalue()
        token = asyncio.run(send(uploads, *form(content, name)))
        assert UPLOAD.fullmatch(token)
        return uploads.take(token)

    return upload


@pytest.mark.parametrize(
    ("image", "name", "options", "colour"),
    [
        (Image.new("RGB", (300, 200), "red"), "red.png", {}, (255, 0, 0)),
        (Image.new("CMYK", (300, 200), (0, 255, 255, 0)), "print.jpg", {}, (255, 0, 0)),
        (Image.new("RGBA", (300, 200), (255, 0, 0, 0)), "clear.png", {}, (255, 255, 255)),
        (Image.fromarray(np.full((200, 300), 32768, np.uint16)), "deep.png", {}, (128, 128, 128)),
        (
            Image.new("RGB", (300, 200), "lime"),
            "moving.gif",
            {"save_all": True, "append_images": [Image.new("RGB", (300, 200), "red")]},
            (0, 255, 0),
        ),
        (Image.new("RGB", (1, 1), "blue"), "dot.png", {}, (0, 0, 255)),
        (Image.new("RGB", (1, 20000), "blue"), "line.png", {}, (0, 0, 255)),
        (Image.new("L", (10_000, 5_000), 77), "50 megapixels.png", {}, (77, 77, 77)),
        (Image.new("RGB", (8_660, 5_773), (77, 77, 77)), "50 megapixels.jpg", {}, (77, 77, 77)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_of_all_kinds(upload, image, name, options, colour):
    picture = upload(image.save, name, **options)
    assert picture.name == name
    assert max(picture.levels.shape[:2]) == 512
    assert abs(picture.levels.astype(int) - colour).max() <= 2


def test_a_picture_is_upright(upload):
    exif = Image.Exif()
    exif[0x112] = 6
    assert upload(Image.new("RGB", (300, 200)).save, exif=exif).levels.shape == (512, 341, 3)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"no picture", "notes.txt", "notes.txt is not an image that Pillow can read"),
        (b"", "empty.png", "empty.png is not an image that Pillow can read"),
        (b"", "", "the file is not an image that Pillow can read"),
        (b"", "/home/me/a.png", "a.png is not an image that Pillow can read"),
        (b"", r"C:\pictures\a.png", "a.png is not an image that Pillow can read"),
        (b"", "x" * 900, "x" * 200 + " is not an image that Pillow can read"),
        (Image.new("1", (20_000, 3_001)).save, "huge.png", "huge.png has more than 60,000,000 pixels"),
    ],
)
def test_what_is_no_picture_is_said(upload, folder, content, name, said):
    with pytest.raises(ValueError, match="^" + said.replace("\\", ".")) as error:
        upload(content, name)
    assert str(folder) not in str(error.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/home/me/secret"), "cat.png cannot be read: Permission denied"),
        (MemoryError("/home/me/secret"), "cat.png takes more memory than there is"),
    ],
)
def test_what_the_machine_lacks_is_said_without_a_path(upload, monkeypatch, error, said):
    def read_photo(path, long_side, max_pixels):
        raise error

    monkeypatch.setattr(playground_uploads, "read_photo", read_photo)
    with pytest.raises(ValueError, match=said) as raised:
        upload(b"")
    assert "secret" not in str(raised.value)


def test_a_picture_is_taken_once_and_not_kept_for_ever(uploads):
    tokens = [asyncio.run(send(uploads, *form(b""))) for _ in range(MOST_UNSHOWN + 1)]
    assert len(set(tokens)) == len(tokens)
    for token in (tokens[0], "0" * 32):  # the first gave way to the last
        with pytest.raises(ValueError, match="upload it again"):
            uploads.take(token)
    for said in ("not an image", "upload it again"):
        with pytest.raises(ValueError, match=said):
            uploads.take(tokens[1])


TWO = form(b"", "a.png")[0].replace(b"--x--\r\n", b"") + form(b"", "b.png")[0]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"", "", 415),
        (b"", "multipart/form-data", 400),  # without a boundary
        (b"nonsense", "multipart/form-data; boundary=x", 400),
        (form(b"", field="other")[0], "multipart/form-data; boundary=x", 400),
        (form(b"")[0].replace(b'; filename="cat.png"', b""), "multipart/form-data; boundary=x", 400),
        (TWO, "multipart/form-data; boundary=x", 400),
    ],
)
def test_what_is_no_form_with_a_file_is_refused(uploads, body, kind, status):
    with pytest.raises(Refused) as refused:
        asyncio.run(send(uploads, body, kind))
    assert refused.value.status == status


def test_no_more_at_once_than_there_may_be(uploads):
    async def flood():
        body, kind = form(b"")
        return await asyncio.gather(
            *(send(uploads, [body[:9], *[body[9:]]], kind) for _ in range(MOST_AT_ONCE + 3)), return_exceptions=True
        )

    got = asyncio.run(flood())
    refused = [error for error in got if isinstance(error, Refused)]
    assert [error.status for error in refused] == [503] * 3
    assert UPLOAD.fullmatch(asyncio.run(send(uploads, *form(b""))))


def test_a_file_that_does_not_arrive_is_not_waited_for(uploads, monkeypatch):
    monkeypatch.setattr(playground_uploads, "PATIENCE", 0.05)
    scope = {"type": "http", "headers": [(b"content-type", form(b"")[1].encode())], "method": "POST", "path": "/"}

    async def stall():
        async def nothing():
            await asyncio.Event().wait()

        await uploads.receive(Request(scope, nothing))

    with pytest.raises(Refused) as refused:
        asyncio.run(stall())
    assert refused.value.status == 408


def test_a_full_disk_is_said(uploads, monkeypatch):
    async def full(self, **limits):
        raise OSError(28, "No space left on device", "/tmp/secret")

    monkeypatch.setattr(Request, "form", full)
    with pytest.raises(Refused, match="the file cannot be kept: No space left on device$"):
        asyncio.run(send(uploads, *form(b"")))
