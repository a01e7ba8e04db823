"""A stand-in for the Hub on the loopback interface: what huggingface_hub asks of it, and no more.

Large files are handed out by a second server, as the Hub does: its redirects lead to other hosts.
What was asked for is noted, and connections break where a test says so.
"""

import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Request(NamedTuple):
    """What was asked for: `name` of a file, or the path; `span` is of a range, as HTTP has it."""

    method: str
    name: str
    span: str | None
    token: str | None
    large: bool  # of the server for large files


@dataclass
class Repository:
    """A repository's files at one commit, and who may read them."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None  # the only one that may read it
    gated: bool = False
    card: dict[str, Any] | None = None

    @classmethod
    def of(cls, folder: Path, **more: bytes) -> "Repository":
        """A repository with the files of a folder, and others."""
        return cls({path.name: path.read_bytes() for path in folder.iterdir()} | more)


@dataclass
class Hub:
    """The stand-in: its repositories, what it was asked, and what is to go wrong."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    breaks: dict[str, list[int]] = field(default_factory=dict)  # bytes until it breaks, next first
    status: int | None = None  # answer everything with it
    ranges: bool = True  # whether large files are handed out in parts
    endpoint: str = ""
    large: str = ""  # the server of large files

    def fetched(self) -> list[str]:
        """The files whose contents were asked for, in order; ranges of headers are among them."""
        return [r.name for r in self.requests if r.method == "GET" and "/" not in r.name]


def is_large(name: str) -> bool:
    """Whether the Hub has a file in git-lfs."""
    return not name.endswith((".json", ".jinja", ".md", ".txt"))


def digest(name: str, data: bytes) -> str:
    """The name that git or git-lfs has for contents."""
    if is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve():
    """A running stand-in."""
    hub = Hub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
    for server in servers:
        server.hub = hub  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.endpoint, hub.large = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *args):
        """Silence; `Hub.requests` is the log."""

    def do_HEAD(self):  # noqa: N802
        self.answer()

    def do_GET(self):  # noqa: N802
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        large = self.headers["Host"] == urlsplit(self.hub.large).netloc
        found = _RESOLVE.fullmatch(path)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        name = found[3] if found else path
        if large or not (found and is_large(name)) or self.command == "HEAD":
            request = Request(self.command, name, self.headers["Range"], token, large)
            self.hub.requests.append(request)
        if self.hub.status:
            self.reply(self.hub.status)
        elif found:
            self.resolve(found[1], found[2], found[3], token, large)
        elif match := _API.fullmatch(path):
            self.api(match[1], match[2], match[3] or "main", token)
        else:
            self.reply(404)

    def api(self, name, what, revision, token):
        repository = self.open(name, revision, token)
        if repository is None:
            return
        files = repository.files.items()
        if what == "tree":
            listed = [
                {"type": "file", "path": n, "size": len(d), "oid": digest(n, d)} | _lfs(n, d)
                for n, d in files
            ]
            self.reply(200, json.dumps(listed).encode())
            return
        siblings = [
            {"rfilename": n, "size": len(d), "blobId": "0" * 40 if is_large(n) else digest(n, d)}
            | _lfs(n, d)
            for n, d in files
        ]
        info = {"id": name, "sha": repository.commit, "siblings": siblings}
        self.reply(200, json.dumps(info | {"cardData": repository.card}).encode())

    def resolve(self, name, revision, file, token, large):
        repository = self.hub.repositories[name] if large else self.open(name, revision, token)
        if repository is None:
            return
        if repository.gated and token != repository.token:
            self.reply(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
            return
        if file not in repository.files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = repository.files[file]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{digest(file, data)}"'}
        if is_large(file) and not large:
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": headers["ETag"]}
            headers |= {"X-Xet-Hash": digest(file, data), "X-Xet-Refresh-Route": "/api/xet"}
            headers["Location"] = f"{self.hub.large}{self.path}"
            self.reply(302, b"", headers)
        else:
            self.send(file, data, headers)

    def send(self, file, data, headers):
        status, whole = 200, len(data)
        match = _RANGE.fullmatch(self.headers["Range"] or "")
        if match and self.hub.ranges:
            start, end = int(match[1]), int(match[2] or whole - 1) + 1
            data, status = data[start:end], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{whole}"
        cut = self.hub.breaks.get(file, [])
        self.reply(status, data, headers, cut.pop(0) if cut and self.command == "GET" else None)

    def open(self, name, revision, token):
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.token not in (None, token) and not repository.gated):
            self.reply(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if revision not in (repository.commit, *repository.revisions):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def reply(self, status, body=b"", headers=None, cut=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True


def _lfs(name, data):
    if not is_large(name):
        return {}
    held = {"oid": digest(name, data), "sha256": digest(name, data)}
    return {"lfs": held | {"size": len(data), "pointerSize": 134}}
