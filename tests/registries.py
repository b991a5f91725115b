"""Registries of the tests' own, on the loopback: Debian's docker-registry, with or without users.

    with running(directory, users={"me": "word"}, tls=True) as registry: ...

Each is gone when this process is, however that ends; directories that killed processes left, the next
one removes. `Front` stands before a registry and does to its answers what networks and servers do.
"""

import base64
import glob
import http.client
import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess  # programs of the tests
import tempfile
import threading
import time
import urllib.parse
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import pytest

import images
from obuilder.system.files import remove_tree
from obuilder.system.sessions import alive, open_session

_PLACES = "/var/tmp/obuilder-registry-"
_PATIENCE = 20


class Registry(NamedTuple):
    """A running registry: HOST:PORT, where its files are, and its certificate authority's."""

    host: str
    directory: str
    ca: str | None = None

    def push(self, source, name, *options, user="", form="oci"):
        """Put an image of a layout there, with skopeo. What names it."""
        known = [f"--dest-creds={user}"] if user else []
        if self.ca:
            known.append(f"--dest-cert-dir={os.path.dirname(self.ca)}")
        else:
            known.append("--dest-tls-verify=false")
        target = f"{self.host}/{name}"
        images.skopeo(source, f"docker://{target}", f"--format={form}", *known, *options)
        return target

    def request(self, method, path, data=None, **headers):
        """An answer's status, headers and content, without any ceremony."""
        link = http.client.HTTPConnection(self.host)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            link.request(method, f"/v2/{path}", data, named)
            answer = link.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            link.close()

    def put_index(self, repository, tag, tags, user=""):
        """An index of images that are there: (tag, platform) pairs. Its digest."""
        known = {}
        if user:
            known["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        manifests = []
        for one, platform in tags:
            _, headers, data = self.request(
                "GET", f"{repository}/manifests/{one}",
                Accept="application/vnd.oci.image.manifest.v1+json", **known,
            )  # fmt: skip
            names = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
            manifests.append(
                {
                    "mediaType": headers["Content-Type"], "size": len(data),
                    "digest": headers["Docker-Content-Digest"], "platform": names,
                }
            )  # fmt: skip
        kind = "application/vnd.oci.image.index.v1+json"
        index = {"schemaVersion": 2, "mediaType": kind, "manifests": manifests}
        status, headers, said = self.request(
            "PUT", f"{repository}/manifests/{tag}", json.dumps(index), Content_Type=kind, **known
        )
        assert status == 201, said
        return headers["Docker-Content-Digest"]


@pytest.fixture(scope="session")
def registry(layout):
    """One that everybody may use, with the images `one` and `two` of the layout as `app:one`, …."""
    with running() as started:
        for tag in ("one", "two"):
            started.push(f"oci:{layout}:{tag}", f"app:{tag}")
        yield started


@contextmanager
def running(*, users=None, tls=False, tokens=None):
    """A registry: for `users` with passwords only, with `tls`, or for who has tokens of a server."""
    sweep()
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix=os.path.basename(_PLACES), dir=os.path.dirname(_PLACES))
        stack.callback(remove_tree, directory)
        stack.callback(open_session(directory).close)
        config = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": f"{directory}/data"}},
            "http": {"addr": "127.0.0.1:0"},
        }
        if users is not None:
            with open(f"{directory}/htpasswd", "w") as file:
                file.writelines(f"{name}:{_bcrypt(word)}\n" for name, word in users.items())
            config["auth"] = {"htpasswd": {"realm": "tests", "path": f"{directory}/htpasswd"}}
        if tokens is not None:
            config["auth"] = {
                "token": {
                    "realm": tokens.realm, "service": "tests", "issuer": "tests",
                    "rootcertbundle": tokens.certificate,
                }
            }  # fmt: skip
        ca = None
        if tls:
            ca = make_authority(directory)
            key, certificate = make_certificate(directory, ca)
            config["http"]["tls"] = {"certificate": certificate, "key": key}
        with open(f"{directory}/config.json", "w") as file:
            json.dump(config, file)  # YAML has JSON in it
        command = [
            "setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", f"{directory}/config.json",
        ]  # fmt: skip
        with open(f"{directory}/log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(_end, process)
        yield Registry(_listens(process, f"{directory}/log"), directory, ca)


def _listens(process, log):
    deadline = time.monotonic() + _PATIENCE
    while True:
        with open(log, errors="replace") as file:
            said = file.read()
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", said)
        if found:
            return found[1]
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("the registry did not start:\n" + said[-2000:])
        time.sleep(0.02)


def _end(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def sweep():
    """Remove what killed processes left."""
    for directory in glob.glob(f"{_PLACES}*"):
        with suppress(FileNotFoundError):
            names = os.listdir(os.path.join(directory, "sessions"))
            if names and not any(alive(directory, name) for name in names):
                remove_tree(directory)


def _bcrypt(word):
    # perl is on every Debian, and htpasswd is not
    return images.run(
        "perl", "-e", "print crypt($ARGV[0], q{$2y$05$abcdefghijklmnopqrstuu})", word
    ).decode()


def make_authority(directory):
    """A certificate authority that nobody else knows: the file of its certificate."""
    os.makedirs(f"{directory}/certs", exist_ok=True)
    ca = f"{directory}/certs/ca.crt"
    images.run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests",
        "-keyout", f"{directory}/ca.key", "-out", ca,
    )  # fmt: skip
    return ca


def make_certificate(directory, ca):
    """Key and certificate for the loopback, signed by the authority."""
    key, certificate = f"{directory}/server.key", f"{directory}/server.crt"
    images.run(
        "openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1",
        "-keyout", key, "-out", f"{directory}/server.csr",
    )  # fmt: skip
    with open(f"{directory}/names", "w") as file:
        file.write("subjectAltName=IP:127.0.0.1\n")
    images.run(
        "openssl", "x509", "-req", "-in", f"{directory}/server.csr", "-CA", ca, "-days", "2",
        "-CAkey", f"{directory}/ca.key", "-CAcreateserial", "-extfile", f"{directory}/names",
        "-out", certificate,
    )  # fmt: skip
    return key, certificate


class Server(http.server.ThreadingHTTPServer):
    """A server in threads of this process; it has `asked`: method, path and headers of requests."""

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.asked = []

    @property
    def host(self):
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Who asked may be gone."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nobody reads it."""

    def say(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def note(self):
        self.server.asked.append((self.command, self.path, dict(self.headers)))


class Tokens(Server):
    """A server that gives tokens to anybody for pulling, or to `users` only; each lives `life` s.

    With an identity token, `refresh`, one needs no password.
    """

    def __init__(self, directory, users=None, life=60):
        super().__init__(_TokenHandler)
        self.users, self.life, self.refresh = users, life, "identity"
        self.key, self.certificate = f"{directory}/token.key", f"{directory}/token.crt"
        images.run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=tokens", "-keyout", self.key, "-out", self.certificate,
        )  # fmt: skip
        self.chain = [
            base64.b64encode(images.run("openssl", "x509", "-in", self.certificate, "-outform", "DER"))
            .decode()
        ]  # fmt: skip
        self.realm = f"http://{self.host}/token"

    def token(self, scopes):
        """One that the registry takes."""
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        head = {"typ": "JWT", "alg": "RS256", "x5c": self.chain}
        claims = {
            "iss": "tests", "aud": "tests", "sub": "", "nbf": now - 60, "iat": now, "jti": "1",
            "exp": now + self.life, "access": access,
        }  # fmt: skip
        text = ".".join(_url64(json.dumps(part).encode()) for part in (head, claims))
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key], input=text.encode(),
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        return f"{text}.{_url64(signed.stdout)}"


def _url64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _TokenHandler(Handler):
    def do_GET(self):
        self.note()
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        users = self.server.users
        if users is not None:
            kind, _, said = self.headers.get("Authorization", "").partition(" ")
            user, _, word = base64.b64decode(said or "Og==").decode().partition(":")
            if kind != "Basic" or users.get(user) != word:
                self.say(401, b'{"errors":[{"message":"who are you?"}]}')
                return
        self._give(query.get("scope", []))

    def do_POST(self):
        self.note()
        data = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = urllib.parse.parse_qs(data)
        if form["grant_type"] != ["refresh_token"] or form["refresh_token"] != [
            self.server.refresh
        ]:
            self.say(401)
        else:
            self._give(form["scope"])

    def _give(self, scopes):
        answer = {"access_token": self.server.token(scopes), "expires_in": self.server.life}
        self.say(200, json.dumps(answer).encode(), Content_Type="application/json")


class Front(Server):
    """Stands before a registry; with `tls`, a key and a certificate, behind that. What it does to blobs
    is in its attributes, and off at first.

    `cut`: answers end after so many bytes. `most`: so many bytes in all, then it only closes.
    `corrupt`: the byte at this place of each answer is another. `lie`: that much is added to the
    length that is told, and to what comes, of blobs larger than `spared`. `redirect`: blobs are at that host. `ranges`: whether it
    gives parts. `busy`: answers to give first, (status, headers), to any request. `chunked`: no
    length is told. `pace`: seconds before each 64 KiB. `rewrite`: changes documents, by path and
    content; `digests`: whether it says what their digests are.
    """

    def __init__(self, upstream, tls=None):
        super().__init__(_FrontHandler)
        if tls is not None:
            key, certificate = tls
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.upstream = upstream
        self.cut = self.corrupt = self.redirect = self.most = None
        self.lie, self.spared, self.pace = 0, 0, 0.0
        self.ranges, self.chunked = True, False
        self.busy = []
        self.sent = 0
        self.rewrite, self.digests = None, True

    def blobs(self):
        """The requests for blobs, as (path, headers)."""
        return [(path, headers) for _, path, headers in self.asked if "/blobs/" in path]


class _FrontHandler(Handler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        front = self.server
        self.note()
        if front.busy:
            status, headers = front.busy.pop(0)
            self.say(status, b"not now", **headers)
            return
        blob = "/blobs/" in self.path
        if blob and front.redirect:
            self.say(307, Location=f"http://{front.redirect}{self.path}")
            return
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() in ("accept", "authorization", "range")
        }
        if not front.ranges:
            headers.pop("Range", None)
        upstream = http.client.HTTPConnection(front.upstream)
        try:
            upstream.request(self.command, self.path, headers=headers)
            answer = upstream.getresponse()
            if blob and answer.status < 300:
                self._blob(answer)
                return
            data = answer.read()
            if front.rewrite is not None and self.command == "GET":
                data = front.rewrite(self.path, data)
            kept = ["content-type", "www-authenticate"]
            kept += ["docker-content-digest"] if front.digests else []
            found = {name: value for name, value in answer.getheaders() if name.lower() in kept}
            self.say(answer.status, data, **found)
        finally:
            upstream.close()

    def _blob(self, answer):
        front = self.server
        length = int(answer.getheader("Content-Length"))
        lie = front.lie if length > front.spared else 0
        self.send_response(answer.status)
        if answer.status == 206:
            self.send_header("Content-Range", answer.getheader("Content-Range"))
        if front.chunked:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length + lie))
        self.end_headers()
        left = min(value for value in (front.cut, length) if value is not None)
        place = 0
        while left:
            if front.most is not None and front.sent >= front.most:
                break
            time.sleep(front.pace)
            data = bytearray(answer.read(min(left, 1 << 16)))
            if front.corrupt is not None and place <= front.corrupt < place + len(data):
                data[front.corrupt - place] ^= 0xFF
            self.wfile.write(data)
            place += len(data)
            front.sent += len(data)
            left -= len(data)
        if place == length and lie > 0:
            self.wfile.write(b"x" * lie)
        if place < length or front.chunked:
            self.close_connection = True
            self.wfile.flush()
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class Proxy(Server):
    """An HTTP proxy that knows names nobody else knows: all of them are one host."""

    def __init__(self, upstream):
        super().__init__(_ProxyHandler)
        self.upstream = upstream


class _ProxyHandler(Handler):
    def do_GET(self):
        self.note()
        url = urllib.parse.urlsplit(self.path)
        upstream = http.client.HTTPConnection(self.server.upstream)
        try:
            path = f"{url.path}?{url.query}" if url.query else url.path
            upstream.request("GET", path, headers={"Accept": self.headers.get("Accept", "*/*")})
            answer = upstream.getresponse()
            data = answer.read()
            self.say(answer.status, data, Content_Type=answer.getheader("Content-Type", ""))
        finally:
            upstream.close()


class Gate(Server):
    """Stands before a registry that is pushed to. `cut`: of a piece of an upload only so many bytes
    get there, and then the connection ends, `cuts` times. `busy`: answers to give first, (method,
    status). `sent` are the bytes of blobs that got there.
    """

    def __init__(self, upstream):
        super().__init__(_GateHandler)
        self.upstream = upstream
        self.cut, self.cuts, self.busy, self.sent = None, 0, [], 0

    def count(self, method, word=""):
        """How many requests of a method had `word` in their path."""
        return sum(asked == method and word in path for asked, path, _ in self.asked)


class _GateHandler(Handler):
    def do_GET(self):
        gate = self.server
        self.note()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if gate.busy and gate.busy[0][0] == self.command:
            self.say(gate.busy.pop(0)[1], b"not now")
            return
        cut = self.command == "PATCH" and gate.cut is not None and gate.cuts > 0
        if cut:
            gate.cuts -= 1
            body = body[: gate.cut]
        upstream = http.client.HTTPConnection(gate.upstream)
        try:
            headers = {
                name: value for name, value in self.headers.items()
                if name.lower() in ("accept", "authorization", "content-type")
            }  # fmt: skip
            upstream.request(self.command, self.path, body, {"Host": gate.host, **headers})
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if "/blobs/" in self.path:
            gate.sent += len(body)
        if cut:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        kept = ("content-type", "location", "range", "docker-content-digest", "www-authenticate")
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in kept:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the library's names
