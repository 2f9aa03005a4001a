"""A server that says to W&B's own programs what they wait for, and keeps what they send.

Only what ``wandb sync``, ``wandb sweep``, ``wandb agent`` and an online run ask of a server, as the releases
from 0.31 on ask it; a request that it does not know fails the test that made it.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "project", "name": "i2i_lightning", "entity": {"id": "entity", "name": "someone"}}
HISTORY = "wandb-history.jsonl"
NOT_ANSWERED = {"ServerFeaturesQuery", "NotifyScriptableRunAlert", "OrganizationCoreWeaveOrganizationID"}
"""Of no consequence here."""


class Server:
    """Where runs go.

    Attributes:
        runs: By identity: what was last said of each (``displayName``, ``config``, ...), the rows of its
            ``history``, and its ``exitcode`` once it is complete.
        files: By address: the bytes that were uploaded.
        artifacts: What was said of each version, in the order of their arrival, and ``committed`` once it is.
        used: Which run took which of ``artifacts`` as its input.
        sweep: The config of the sweep, as text.
        drawn: What the agents are still to run: identity and values of each trial.
        unknown: Requests that nobody answered.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.used: list[tuple[str, int]] = []
        self.sweep = ""
        self.drawn: list[tuple[str, dict[str, Any]]] = []
        self.unknown: list[str] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with server._lock:
                    said = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST = do_PUT = answer

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # the other side closes connections as its processes end

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def history(self, run: str) -> list[dict[str, Any]]:
        """Return the rows of a run, as they were sent."""
        return [json.loads(line) for line in self.runs[run]["history"]]

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/graphql":
            asked = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation = asked.get("operationName") or (name[1] if name else "")
            method = getattr(self, f"_{operation}", None)
            if method is None:
                if operation not in NOT_ANSWERED:
                    self.unknown.append(asked["query"])
                return {"data": {}}
            return {"data": method(asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            self._stream(self.runs[path.split("/")[-2]], json.loads(body))
        elif path.startswith("/upload/"):
            self.files[path.removeprefix("/upload/")] = body
        return {}

    def _stream(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        if HISTORY in sent.get("files", {}):
            part = sent["files"][HISTORY]
            run["history"][part["offset"] :] = part["content"]
        if sent.get("complete"):
            run["exitcode"] = sent.get("exitcode")

    # -------------------- who asks

    def _Viewer(self, said: dict[str, Any]) -> Any:
        person = {"id": "person", "username": "someone", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": {**person, "entity": "someone"}}

    # -------------------- runs

    def _bucket(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        return {
            "id": name,
            "name": name,
            "displayName": run.get("displayName"),
            "config": run.get("config", "{}"),
            "sweepName": run.get("sweep"),
            "project": PROJECT,
            "historyLineCount": len(run["history"]),
            "historyTail": json.dumps(run["history"][-1:]),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "summaryMetrics": "{}",
            "tags": run.get("tags"),
            "wandbConfig": '{"t": 1}',
        }

    def _RunResumeStatus(self, said: dict[str, Any]) -> Any:
        known = said["name"] in self.runs
        return {"model": {**PROJECT, "bucket": self._bucket(said["name"]) if known else None}}

    def _UpsertBucket(self, said: dict[str, Any]) -> Any:
        inserted = said["name"] not in self.runs
        run = self.runs.setdefault(said["name"], {"history": []})
        run |= {key: value for key, value in said.items() if value is not None}
        return {"upsertBucket": {"bucket": self._bucket(said["name"]), "inserted": inserted}}

    def _CreateRunFiles(self, said: dict[str, Any]) -> Any:
        files = [
            {"name": name, "uploadUrl": f"{self.address}/upload/{said['run']}/{name}"}
            for name in said["files"]
        ]
        return {"createRunFiles": {"runID": said["run"], "uploadHeaders": [], "files": files}}

    # -------------------- artifacts

    def _ArtifactType(self, said: dict[str, Any]) -> Any:
        collection = said["name"].partition(":")[0]
        known = [made for made in self.artifacts if made["artifactCollectionName"] == collection]
        kind = {"artifactType": {"name": known[0]["artifactTypeName"]}} if known else None
        return {"project": {"artifact": kind}}

    def _CreateArtifact(self, said: dict[str, Any]) -> Any:
        given = said["input"]
        same = (given["artifactCollectionName"], given["digest"])
        known = [(made["artifactCollectionName"], made["digest"]) for made in self.artifacts]
        if same in known:  # the same bytes under the same name are no new version
            number, state = known.index(same), "COMMITTED"
        else:
            self.artifacts.append(given)
            number, state = len(known), "PENDING"
        artifact = {"id": str(number), "state": state, "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, said: dict[str, Any]) -> Any:
        place = f"artifacts/{said['artifactID']}/{said['name']}"
        file = {"id": place, "uploadUrl": f"{self.address}/upload/{place}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": said["artifactID"], "file": file}}}

    def _CreateArtifactFiles(self, said: dict[str, Any]) -> Any:
        edges = []
        for file in said["input"]["artifactFiles"]:
            place = f"artifacts/{file['artifactID']}/{file['name']}"
            address = f"{self.address}/upload/{place}"
            node = {"storagePath": place, "uploadUrl": address, "uploadHeaders": []}
            edges.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, said: dict[str, Any]) -> Any:
        self.artifacts[int(said["artifactID"])]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": said["artifactID"], "digest": "digest"}}}

    def _UseArtifact(self, said: dict[str, Any]) -> Any:
        number = said["input"]["artifactID"]
        self.used.append((said["input"]["runName"], int(number)))
        return {"useArtifact": {"artifact": {"id": number}}}

    # -------------------- sweeps

    def _UpsertSweep(self, said: dict[str, Any]) -> Any:
        self.sweep = said["config"]
        sweep = {"name": "sweep", "project": PROJECT}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _SweepWithRuns(self, said: dict[str, Any]) -> Any:
        sweep = {
            "id": "sweep",
            "name": "sweep",
            "state": "RUNNING",
            "config": self.sweep,
            "runs": {"edges": []},
        }
        return {"project": {"sweep": sweep}}

    def _CreateAgent(self, said: dict[str, Any]) -> Any:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _Heartbeat(self, said: dict[str, Any]) -> Any:
        commands: list[dict[str, Any]] = []
        if not json.loads(said["runState"]):  # the agent has nothing to do
            if self.drawn:
                name, values = self.drawn.pop(0)
                args = {key: {"value": value} for key, value in values.items()}
                commands = [{"type": "run", "run_id": name, "program": "", "args": args}]
            else:
                commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
