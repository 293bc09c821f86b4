import os
import subprocess
import sys
import tempfile
import urllib.request

import pytest

from helpers.command import complaint, succeed
from torch_dropblock.command import playground


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be(port):
    assert complaint("playground", "--port", port) == f"--port must be from 1 to 65535, got {port}"


@pytest.mark.parametrize("missing", ["gradio", "fastapi", "uvicorn"])
def test_a_missing_package_names_the_extra(monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith("torch_dropblock.playground.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    line = complaint("playground", "--no-open")
    assert line == f'{missing} is not installed; run: pip install "torch-dropblock[playground]"'


@pytest.mark.parametrize(("options", "expected"), [([], (None, True)), (["--port", 8000, "--no-open"], (8000, False))])
def test_what_is_typed_reaches_the_server(monkeypatch, options, expected):
    from torch_dropblock.playground import server

    served = []

    def serve(folder, port, open_browser, ready):
        assert folder.is_dir()
        served.append((port, open_browser))
        ready("http://127.0.0.1:1")

    monkeypatch.setattr(server, "serve", serve)
    assert succeed("playground", *options) == "The playground is at http://127.0.0.1:1 (Ctrl-C ends it)\n"
    assert served == [expected]


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_uploads_have_a_private_folder_for_a_while(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    else:
        monkeypatch.setenv("GRADIO_TEMP_DIR", before)
    with playground._private_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert str(folder).startswith(tempfile.gettempdir())
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_gradio_is_imported_without_proxies_and_certificates(monkeypatch):
    theirs = {
        "all_proxy": "socks5://a",
        "HTTPS_PROXY": "b",
        "NO_PROXY": "[::1]",
        "SSL_CERT_FILE": "c",
        "SSL_CERT_DIR": "",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with playground._no_proxies():
        assert {name: os.environ.get(name) for name in theirs} == {**dict.fromkeys(theirs), "NO_PROXY": "*"}
        assert urllib.request.proxy_bypass("example.com")
    assert dict(os.environ) == before


def test_gradio_is_imported_by_this_command_alone():
    code = "import sys, torch_dropblock.command.app; assert not {'gradio', 'fastapi', 'uvicorn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
