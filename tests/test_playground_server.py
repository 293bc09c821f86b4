"""The server of the playground as its own process, without a browser."""

import queue
import re
import signal
import socket
import urllib.error
import urllib.request
import webbrowser

import pytest

from browser import Server
from torch_dropblock import playground_server
from torch_dropblock.playground_server import FIRST_PORT, HOST, serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(folder):
    # settings of Gradio that would take it elsewhere, and a proxy that is not there
    elsewhere = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True", "GRADIO_ANALYTICS_ENABLED": "True"}
    server = Server(TMPDIR=str(folder), HTTP_PROXY="http://127.0.0.1:9", GRADIO_ROOT_PATH="/there", **elsewhere)
    yield server
    code, said = server.interrupt(signal.SIGTERM)
    assert (code, said) == (0, "")
    assert list(folder.iterdir()) == []


def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60) as answer:
        return answer.read().decode()


def test_the_page_names_nothing_outside_this_machine(server):
    page = get(server.url)
    assert "DropBlock playground" in page
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)\"", page)
    assert loaded
    assert [link for link in loaded if re.match("(https?:)?//", link)] == []
    assert '"analytics_enabled":false' in page
    style = get(f"{server.url}/theme.css").replace("http://www.w3.org/2000/svg", "")  # a name, nothing to load
    assert "http" not in style
    assert "@import" not in style


def test_only_this_machine_is_served(server):
    port = int(server.url.rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {HOST}
    for address in others:
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect((address, port))


@pytest.mark.parametrize("path", ["/gradio_api/file=/etc/passwd", "/monitoring", "/gradio_api/file=pyproject.toml"])
def test_no_other_file_is_served(server, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(server.url + path)
    error.value.close()
    assert error.value.code in (403, 404)


def test_uploads_go_where_only_their_owner_can_read(server, folder):
    (private,) = folder.iterdir()
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_second_server_takes_the_next_port(server):
    second = Server()
    assert second.url != server.url
    code, said = second.interrupt(signal.SIGINT)
    assert (code, said) == (0, "")


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        expected = rf"port {port} cannot be had on 127\.0\.0\.1: .+; choose another with --port"
        with pytest.raises(ValueError, match=expected):
            serve(port, open_browser=False, ready=print)


def test_no_port_is_left(monkeypatch):
    monkeypatch.setattr(playground_server, "PORTS_TRIED", 0)
    with pytest.raises(ValueError, match=f"ports from {FIRST_PORT} on"):
        serve(None, open_browser=False, ready=print)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_browser_is_opened_if_wanted(monkeypatch, wanted):
    async def empty_page(scope, receive, send):
        """An application with nothing on it."""

    opened, ready = queue.Queue(), []
    monkeypatch.setattr(webbrowser, "open", opened.put)
    monkeypatch.setattr(playground_server, "create_app", lambda: empty_page)

    def end(url):
        ready.append(url)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        serve(None, wanted, end)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", *ready)
    if wanted:
        assert opened.get(timeout=20) == ready[0]
    else:
        assert opened.empty()
