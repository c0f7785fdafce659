"""A stub hub that serves one folder: the requests of `huggingface_hub` when it downloads a snapshot."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(repo: str, folder: Path, sent: list[str]) -> Iterator[str]:
    """Yields the address of a hub with one model; `sent` collects the names of the files that it sends."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            files = sorted(folder.iterdir())
            if path == f"/api/models/{repo}" or path.startswith(f"/api/models/{repo}/revision/"):
                names = [{"rfilename": file.name} for file in files]
                self._send(json.dumps({"id": repo, "sha": COMMIT, "siblings": names}).encode(), body)
            elif path.startswith(f"/api/models/{repo}/tree/"):
                tree = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT} for file in files
                ]
                self._send(json.dumps(tree).encode(), body)
            elif path.startswith(f"/{repo}/resolve/") and (folder / Path(path).name).is_file():
                if body:
                    sent.append(Path(path).name)
                self._send((folder / Path(path).name).read_bytes(), body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, content: bytes, body: bool) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
