"""Uploaded pictures: each file is read on arrival and removed at once, so that no request can name it."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ..pictures.photo import read_photo
from .calls import Refused
from .view import SIDE, Levels, as_levels

LARGEST_FILE = 100_000_000  # bytes
LARGEST_FORM = LARGEST_FILE + 10_000  # with the overhead of a form
LARGEST_PICTURE = 60_000_000  # pixels
LONGEST_NAME = 200
MOST_AT_ONCE = 2  # uploads
MOST_UNSHOWN = 8  # pictures
PATIENCE = 60.0  # seconds for a file to arrive; from the same machine it takes less than one


class Picture(NamedTuple):
    """An uploaded picture."""

    name: str
    levels: Levels


class Uploads:
    """Uploaded pictures that are not shown yet, each under a random name that only its uploader gets.

    Args:
        folder: folder for a file while it is read; only this server writes there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unshown: OrderedDict[str, Picture | str] = OrderedDict()  # a str is the reason why there is no picture
        self._receiving = 0
        self._reading = threading.Lock()  # one at a time, since a large picture takes much memory

    async def receive(self, request: Request) -> str:
        """Read the picture in a form, and return the name under which `take` returns it once.

        Raises:
            Refused: the request is not a form with one file, is too large or too slow, or too many uploads are running.
        """
        if self._receiving >= MOST_AT_ONCE:
            raise Refused(503, "too many files are being uploaded; try again")
        self._receiving += 1
        try:
            read = await self._receive(request)
        finally:
            self._receiving -= 1
        token = secrets.token_hex(16)
        self._unshown[token] = read
        if len(self._unshown) > MOST_UNSHOWN:
            self._unshown.popitem(last=False)
        return token

    def take(self, token: str) -> Picture:
        """Return and forget the picture under a name from `receive`.

        Raises:
            ValueError: there is no picture under that name, or the file was not a picture.
        """
        read = self._unshown.pop(token, "the uploaded picture is no longer there; upload it again")
        if isinstance(read, str):
            raise ValueError(read)  # noqa: TRY004 - the fault is in the file, not in a type
        return read

    async def _receive(self, request: Request) -> Picture | str:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise Refused(415, "an upload must be a form (multipart/form-data)")
        try:
            form = await asyncio.wait_for(request.form(max_files=1, max_fields=0), PATIENCE)
        except asyncio.TimeoutError:
            raise Refused(408, f"the upload took longer than {PATIENCE:.0f} s") from None
        except (MultiPartException, ValueError):
            raise Refused(400, "an upload must be a form with one file") from None
        except OSError as error:
            raise Refused(507, f"the file cannot be kept: {error.strerror}") from None
        try:
            file = form.get("files")
            if not isinstance(file, UploadFile):
                raise Refused(400, "an upload must be a form with one file, named files")
            return await run_in_threadpool(self._read, file.file, file.filename or "")
        finally:
            await form.close()

    def _read(self, file: BinaryIO, sent_name: str) -> Picture | str:
        """Return the picture in a file, or an error message with the file's name and no path."""
        name = re.split(r"[/\\]", sent_name)[-1][:LONGEST_NAME] or "the file"
        path = self._folder / secrets.token_hex(16)
        try:
            with self._reading:
                with path.open("xb") as kept:
                    shutil.copyfileobj(file, kept)
                return Picture(name, as_levels(read_photo(path, SIDE, max_pixels=LARGEST_PICTURE)))
        except ValueError as error:
            return str(error).replace(str(path), name)
        except MemoryError:
            return f"{name} takes more memory than there is; scale it down first"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        finally:
            path.unlink(missing_ok=True)
