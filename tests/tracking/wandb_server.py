"""A small stand-in for W&B's server: it answers what the client asks to make, resume, stream and read a run, and keeps
what it was sent. It is no more than that; how a page looks only the real server shows.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40


@dataclass
class Run:
    """A run as the server has it."""

    name: str
    project: str
    group: str | None = None
    display_name: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    opened: int = 0

    @property
    def result(self) -> dict[str, Any]:
        """The final figures."""
        return {key: value for key, value in self.summary.items() if key.startswith("result/")}

    def steps(self) -> list[int]:
        """W&B's own step of each row."""
        return [row["_step"] for row in self.rows]

    def upsert(self, given: dict[str, Any]) -> None:
        """Take what a client says of the run; what it leaves out stays."""
        self.group = given.get("groupName") or self.group
        self.display_name = given.get("displayName") or self.display_name
        self.job_type = given.get("jobType") or self.job_type
        self.tags = given.get("tags") or self.tags
        if given.get("config"):
            self.config |= {key: value["value"] for key, value in json.loads(given["config"]).items()}

    def stream(self, sent: dict[str, Any]) -> None:
        """Take a piece of the file stream: rows replace those at their offset, as on the real server."""
        for name, chunk in sent.get("files", {}).items():
            content = [json.loads(text) for text in chunk["content"]] if name.endswith((".json", ".jsonl")) else []
            if name == "wandb-history.jsonl":
                self.rows[chunk["offset"] : chunk["offset"] + len(content)] = content
            elif name == "wandb-summary.json" and content:
                self.summary = content[-1]
        if sent.get("complete"):
            self.exit_code = sent.get("exitcode")


class Server(ThreadingHTTPServer):
    """Keeps runs by id.

    Attributes:
        down: While set, every answer is an error that the client tries again.
        loses: While set, rows are answered as taken, and are not kept.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, Run] = {}
        self.views: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.down = self.loses = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def variables(self) -> dict[str, str]:
        """What makes a client talk to us."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle is no error of ours."""

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data that answers a query."""
        if "mutation UpsertBucket" in query:
            return self._upsert(given)
        if "query RunResumeStatus" in query:
            run = self.runs.get(given["name"])
            return {"model": {**_project(given["project"]), "bucket": None if run is None else _bucket(run)}}
        if "mutation CreateRunFiles" in query:
            places = [{"name": name, "uploadUrl": f"{self.url}/up/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": places}}
        if "mutation upsertView" in query or "mutation UpsertView2" in query:
            self.views.append(given)
            view = {key: given.get(key) for key in ("type", "name", "displayName", "description", "spec")}
            view |= {"id": f"view-{given['type']}", "project": {"id": "1", "name": "p", "entityName": "me"}}
            return {"upsertView": {"view": view, "inserted": not given.get("id")}}
        if "query GetProjects" in query:
            node = {"__typename": "Project", "id": "P", "name": "p", "entityName": "me", "createdAt": ""}
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": node | {"isBenchmark": False, "user": None}}]}}
        if "viewer" in query and "project(" not in query:
            person = {"id": "V", "entity": "me", "username": "me", "name": "me", "email": "me@example.com"}
            person |= {"flags": "{}", "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}}
            return {"viewer": person, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}
        if "project(" in query and (given.get("name") or given.get("run")) in self.runs:
            return {
                "project": {
                    **_project(given.get("project")),
                    "run": _bucket(self.runs[given.get("name") or given["run"]]),
                }
            }
        if "project(" in query or "model(" in query:
            return {"project": {**_project(given.get("project")), "run": None}, "model": _project("p")}
        return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        fresh = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], Run(given["name"], given["project"]))
        run.opened += given.get("displayName") is not None
        run.upsert(given)
        return {"upsertBucket": {"bucket": _bucket(run), "inserted": fresh}}


def _project(name: Any) -> dict[str, Any]:
    return {"id": "P", "internalId": "1", "name": name, "entity": {"id": "E", "name": "me"}}


def _bucket(run: Run) -> dict[str, Any]:
    last = run.rows[-1] if run.rows else None
    config = json.dumps({key: {"value": value} for key, value in run.config.items()})
    return {
        "id": run.name,
        "name": run.name,
        "displayName": run.display_name,
        "description": "",
        "state": "finished" if run.exit_code == 0 else "running" if run.exit_code is None else "failed",
        "config": config,
        "summaryMetrics": json.dumps(run.summary),
        "historyTail": json.dumps([json.dumps(last)] if last else []),
        "eventsTail": "[]",
        "historyLineCount": len(run.rows),
        "eventsLineCount": 0,
        "logLineCount": 0,
        "historyKeys": {"lastStep": last["_step"] if last else -1, "sets": [], "keys": {}},
        "tags": run.tags,
        "notes": None,
        "group": run.group,
        "jobType": run.job_type,
        "sweepName": None,
        "projectId": "1",
        "createdAt": "2026-01-01T00:00:00",
        "heartbeatAt": "2026-01-01T00:00:00",
        "systemMetrics": "{}",
        "wandbConfig": json.dumps({"t": 1}),  # says that a client has begun it
        "user": {"name": "me", "username": "me"},
        "project": _project(run.project),
    }


class Handler(BaseHTTPRequestHandler):
    """Reads a request, with or without gzip, and answers JSON."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _any(self) -> None:
        body = self._body()
        if self.server.down:
            self._answer({"error": "down for this test"}, 503)
            return
        with self.server.lock:
            if self.path == "/graphql":
                asked = json.loads(body)
                self.server.asked.append(asked["query"])
                self._answer({"data": self.server.graphql(asked["query"], asked.get("variables") or {})})
                return
            pieces = self.path.strip("/").split("/")
            if pieces[-1] == "file_stream":
                sent = json.loads(body)
                if self.server.loses:
                    sent["files"] = {}
                self.server.runs[pieces[-2]].stream(sent)
            elif pieces[0] == "up":
                self.server.runs[pieces[1]].files["/".join(pieces[2:])] = body
            self._answer({})

    do_GET = do_POST = do_PUT = do_HEAD = _any


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
