"""The server of the playground as its own process, without a browser; part of it is attacked."""

import contextlib
import http.client
import json
import queue
import re
import signal
import socket
import time
import webbrowser

import pytest

from helpers import asgi
from helpers.asgi import form
from helpers.browser import Server
from torch_dropblock.playground import server as playground_server
from torch_dropblock.playground.gate import CALL, UPLOAD
from torch_dropblock.playground.server import FIRST_PORT, HOST, serve
from torch_dropblock.playground.sessions import MOST_SESSIONS

# settings that would take Gradio elsewhere, or end its import
SETTINGS = {
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_SHARE": "True",
    "GRADIO_ANALYTICS_ENABLED": "True",
    "GRADIO_ROOT_PATH": "/there",
    "GRADIO_ALLOWED_PATHS": "/",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "no_proxy": "[::1]",
    "SSL_CERT_FILE": "/nowhere/certificates.pem",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(folder):
    server = Server(TMPDIR=str(folder), **SETTINGS)
    yield server
    code, said = server.interrupt(signal.SIGTERM)
    assert (code, said) == (0, "")  # of all that the tests below do, nothing ended in a traceback
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def ask(server):
    """Send a request to the server: the status, the headers and the text of the answer."""
    port = int(server.url.rpartition(":")[2])
    connection = http.client.HTTPConnection(HOST, port, timeout=60)

    def ask(method, path, body=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
        except ConnectionError:  # the server ends a connection that has not been used for a while
            connection.close()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
        return answer.status, str(answer.headers), answer.read().decode("utf-8", "replace")

    ask.port = port
    yield ask
    connection.close()


@pytest.fixture(scope="module")
def config(ask):
    """Of the page, as Gradio writes it into it."""
    found = re.search(r"window\.gradio_config = (\{.*?\});?\s*</script>", ask("GET", "/")[2], re.DOTALL)
    return json.loads(found[1])


def test_the_page_names_nothing_outside_this_machine(ask):
    _, _, page = ask("GET", "/")
    assert "DropBlock playground" in page
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)\"", page)
    assert loaded
    assert [link for link in loaded if re.match("(https?:)?//", link)] == []
    assert '"analytics_enabled":false' in page
    style = ask("GET", "/theme.css")[2].replace("http://www.w3.org/2000/svg", "")  # a name, nothing to load
    assert "http" not in style
    assert "@import" not in style


def test_only_this_machine_is_served(server):
    port = int(server.url.rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {HOST}
    for address in others:
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect((address, port))


def test_uploads_go_where_only_their_owner_can_read(server, folder):
    (private,) = folder.iterdir()
    assert private.stat().st_mode & 0o777 == 0o700
    assert [path for path in private.rglob("*") if path.is_file()] == []


# --- an attacker -------------------------------------------------------------------------------------------------


@pytest.fixture
def trap():
    """A server that nobody may call."""
    with socket.socket() as trap:
        trap.bind((HOST, 0))
        trap.listen()
        yield f"http://{HOST}:{trap.getsockname()[1]}/bait.png"
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


@pytest.fixture
def secret(tmp_path):
    """A file of the user, alone in its folder, that must neither be seen nor go."""
    file = tmp_path / "own" / "secret.png"
    file.parent.mkdir()
    file.write_text("SECRET-CONTENT")
    yield file
    assert file.read_text() == "SECRET-CONTENT"


def hostile(secret, trap):
    """By kind, JSON texts of values that no control has."""
    file = {"path": str(secret), "orig_name": "secret.png", "meta": {"_type": "gradio.FileData"}}
    address = {**file, "path": trap, "url": trap}
    kinds = {
        "file": file,
        "address": address,
        "path and address": {**file, "url": trap},
        "stream": {**file, "is_stream": True},
        "without meta": {"path": str(secret)},
        "in a list": [file],
        "nested": {"value": {"a": [file, {"b": address}]}},
        "update": {"__type__": "update", "value": file},
        "path": str(secret),
        "climbing path": f"../../../../../../../../{secret}",
        "file URL": secret.as_uri(),
        "web address": trap,
        "empty object": {},
        "empty list": [],
        "list of numbers": [7, 7],
        "negative": -1,
        "fraction": 0.123,
        "large": 1e300,
        "true": True,
        "null": None,
        "empty text": "",
        "number as text": "7",
        "long text": "x" * 5000,
        "zero byte": "a\0b",
    }
    texts = {kind: json.dumps(value) for kind, value in kinds.items()}
    numbers = ("1" + 400 * "0", "-1" + 400 * "0", "1" * 5000, "1e400", "NaN", "Infinity", "-Infinity")
    return texts | {number[:12]: number for number in numbers} | {"deep": "[" * 3000 + "]" * 3000}


HARMLESS = {"null", "true", "negative", "fraction", "large"}  # some control has it, or `Settings` says what is wrong


def usual_value(type, props, **_):
    """What a page sends for a control; of the map a small one, which is soon drawn."""
    return "0" * 32 if type == "textbox" else 2 if props.get("label") == "Map size" else props.get("value")


def attack(ask, config, secret, trap):
    """Try every value in every argument of every function; the status and the answer for each."""
    components = {component["id"]: component for component in config["components"]}
    for function in config["dependencies"]:
        usual = [json.dumps(usual_value(**components[at])) for at in function["inputs"]]
        for at, component in enumerate(function["inputs"]):
            for kind, value in hostile(secret, trap).items():
                data = ",".join([*usual[:at], value, *usual[at + 1 :]])
                body = f'{{"data": [{data}], "fn_index": {function["id"]}, "session_hash": "a", "trigger_id": null}}'
                status, headers, text = ask("POST", CALL, body, content_type="application/json")
                yield (function["id"], components[component]["type"], kind), status, headers + text


def test_no_argument_of_any_function_opens_a_file(ask, config, secret, trap):
    tried = list(attack(ask, config, secret, trap))
    assert len(tried) > 1000
    for (function, control, kind), status, text in tried:
        assert status == 422 or (status == 200 and kind in HARMLESS), (function, control, kind, status)
        for told in (str(secret), "SECRET-CONTENT", str(secret.parent), "Traceback", ".py", "bait"):
            assert told not in text, (function, control, kind)


def test_no_other_part_of_a_call_does(ask, config, secret, trap):
    function = next(f["id"] for f in config["dependencies"] if f["backend_fn"] and len(f["inputs"]) == 1)
    usual = {"data": "[false]", "fn_index": str(function), "session_hash": '"a"'}
    ignored = ["trigger_id", "event_data", "event_id", "oauth_token", "batched", "simple_format"]
    for field in [*usual, *ignored]:
        for kind, value in hostile(secret, trap).items():
            body = "{" + ", ".join(f'"{name}": {text}' for name, text in (usual | {field: value}).items()) + "}"
            status, _, text = ask("POST", CALL, body, content_type="application/json")
            taken = field in ignored or (field, kind) == ("session_hash", "number as text")
            assert status == 422 or (status == 200 and taken), (field, kind)
            assert "secret" not in text


def routes(router):
    for route in router.routes:
        yield from routes(route.original_router) if hasattr(route, "original_router") else [route]


def test_no_route_of_gradio_is_served_but_the_pages_own(ask, tmp_path, secret, trap):
    """All that Gradio has, of this version and of later ones, with a file in every part of the address."""
    app = playground_server.create_app(tmp_path)._app
    (gradio,) = (route.app for route in app.routes if getattr(route, "path", None) == "")
    templates = {(method, route.path) for route in routes(gradio) for method in getattr(route, "methods", ["GET"])}
    assert len(templates) > 60
    served = set()
    for method, template in sorted(templates):
        for value in (str(secret), trap, "X"):
            path = re.sub(r"\{[^}]*\}", lambda _, value=value: value, template)
            status, _, text = ask(method, f"{path}?deep_link={secret}&session_hash=a&upload_id=a")
            assert "SECRET" not in text
            assert str(secret) not in text
            if status != 404:
                served.add(template)
    assert served == {"/", "/theme.css", "/favicon.ico", UPLOAD}


def test_files_of_this_machine_are_not_served(ask, folder, secret):
    (private,) = folder.iterdir()
    for path in (secret, private, "/etc/passwd", "pyproject.toml", playground_server.__file__):
        for address in (
            "gradio_api/file=",
            "gradio_api/file/",
            "file=",
            "assets/",
            "assets/../",
            "static/..%2f",
            "assets/%2e%2e/",
        ):
            assert ask("GET", f"/{address}{path}")[0] == 404


@pytest.mark.parametrize("name", ["a.png", "../../a.png", "/etc/passwd", "a" * 3000, "..", "C:\\a.png"])
def test_an_upload_is_nowhere_to_be_found(ask, folder, config, name):
    body, kind = form(b"no picture", name)
    status, _, text = ask("POST", UPLOAD, body, content_type=kind)
    (token,) = json.loads(text)
    assert status == 200
    (private,) = folder.iterdir()
    assert [path for path in private.rglob("*") if path.is_file()] == []
    for address in ("file=", "file/"):
        assert ask("GET", f"/gradio_api/{address}{private}/{token}")[0] == 404


@pytest.mark.parametrize(
    "source", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_an_upload_of_another_site_is_refused_before_it_is_sent(ask, source):
    with socket.create_connection((HOST, ask.port), timeout=30) as connection:
        headers = {"Host": f"{HOST}:{ask.port}", "Content-Type": form(b"")[1], "Content-Length": "50000000", **source}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"POST {UPLOAD} HTTP/1.1\r\n{lines}\r\n".encode())
        answer = connection.recv(10_000).decode()
    assert re.match("HTTP/1.1 (403|421) ", answer)
    assert "access-control" not in answer.lower()


def test_a_flood_of_sessions_does_not_make_the_server_grow(tmp_path, config):
    app = playground_server.create_app(tmp_path)
    (gradio,) = (route.app for route in app._app.routes if getattr(route, "path", None) == "")
    function = next(f["id"] for f in config["dependencies"] if f["backend_fn"] and len(f["inputs"]) == 1)
    for number in range(3 * MOST_SESSIONS):
        body = json.dumps({"data": [False], "fn_index": function, "session_hash": str(number)}).encode()
        assert asgi.ask(app, "POST", CALL, body, content_type="application/json")[0] == 200
    for kept in (gradio.state_holder.session_data, gradio.state_holder.time_last_used):
        assert list(kept) == [str(number) for number in range(2 * MOST_SESSIONS, 3 * MOST_SESSIONS)]


def test_a_flood_of_pages_ends_and_leaves_nothing(ask):
    pages = []
    try:
        statuses = []
        for number in range(MOST_SESSIONS + 5):
            pages.append(http.client.HTTPConnection(HOST, ask.port, timeout=60))
            pages[-1].request("GET", f"/gradio_api/heartbeat/{number}")
            statuses.append(pages[-1].getresponse().status)
        assert statuses == [200] * MOST_SESSIONS + [503] * 5
    finally:
        for page in pages:
            page.close()
    for _ in range(100):  # until the server has noticed
        with contextlib.closing(http.client.HTTPConnection(HOST, ask.port, timeout=60)) as page:
            page.request("GET", "/gradio_api/heartbeat/new")
            if page.getresponse().status == 200:
                return
        time.sleep(0.1)
    pytest.fail("the pages stayed open")


# --- ports -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        expected = rf"port {port} cannot be used on 127\.0\.0\.1: .+; choose another with --port"
        with pytest.raises(ValueError, match=expected):
            serve(tmp_path, port, open_browser=False, ready=print)


def test_no_port_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(playground_server, "PORTS_TRIED", 0)
    with pytest.raises(ValueError, match=f"ports from {FIRST_PORT} on"):
        serve(tmp_path, None, open_browser=False, ready=print)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_browser_is_opened_if_wanted_with_the_next_port(server, monkeypatch, tmp_path, wanted):
    async def empty_page(scope, receive, send):
        """An application with nothing on it."""

    opened, ready = queue.Queue(), []
    monkeypatch.setattr(webbrowser, "open", opened.put)
    monkeypatch.setattr(playground_server, "create_app", lambda folder: empty_page)

    def end(url):
        ready.append(url)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        serve(tmp_path, None, wanted, end)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", *ready)
    assert ready != [server.url]
    if wanted:
        assert opened.get(timeout=20) == ready[0]
    else:
        assert opened.empty()
