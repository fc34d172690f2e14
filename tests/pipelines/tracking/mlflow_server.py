"""An MLflow server whose answers a test chooses: it speaks the real protocol to the real client."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

RUN_ID = "0123456789abcdef0123456789abcdef"


class Server:
    """Answers and what was asked."""

    def __init__(self):
        self.uri = ""
        self.artifact_uri = "mlflow-artifacts:/1/run/artifacts"
        self.lifecycle_stage = "active"
        """Of the experiment."""
        self.versions = []
        """Model versions as MLflow's JSON."""
        self.alias = None
        """Number of the champion's version."""
        self.redirect = ""
        """Where artifacts are redirected to."""
        self.received = {}
        """Path -> bytes of every artifact."""
        self.asked = []
        """Method and path of every request."""

    def run(self):
        info = {
            "run_id": RUN_ID, "run_uuid": RUN_ID, "experiment_id": "1", "status": "RUNNING",
            "artifact_uri": self.artifact_uri, "lifecycle_stage": "active", "start_time": 1,
        }  # fmt: skip
        return {"run": {"info": info, "data": {}, "inputs": {}}}

    def answer(self, path, query):
        """The JSON answer to a request."""
        _, _, call = path.partition("/mlflow/")
        if call == "experiments/get-by-name":
            return {
                "experiment": {
                    "experiment_id": "1", "name": query["experiment_name"][0],
                    "artifact_location": self.artifact_uri, "lifecycle_stage": self.lifecycle_stage,
                }
            }  # fmt: skip
        if call in ("runs/create", "runs/get"):
            return self.run()
        name = self.versions[0]["name"] if self.versions else "genmod-vae"
        registered = {"name": name, "aliases": [{"alias": "champion", "version": self.alias}]}
        if self.alias is None:
            registered["aliases"] = []
        if call == "registered-models/search":
            return {"registered_models": [registered]}
        if call == "registered-models/get":
            return {"registered_model": registered}
        if call == "model-versions/search":
            return {"model_versions": self.versions}
        if call == "model-versions/get":
            (version,) = [v for v in self.versions if v["version"] == query["version"][0]]
            return {"model_version": version}
        return {}


def version(number, **tags):
    """A model version with tags of genmod's."""
    return {
        "name": "genmod-vae", "version": str(number), "creation_timestamp": 1, "status": "READY",
        "last_updated_timestamp": 1, "current_stage": "None", "source": "runs:/x/model",
        "tags": [{"key": f"genmod.{key}", "value": value} for key, value in tags.items()],
    }  # fmt: skip


@contextmanager
def mlflow_server():
    """A server in a thread."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self):
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            server.asked.append((self.command, self.path))
            if "/artifacts/" in url.path or self.command == "PUT":
                server.received[url.path] = body
                if server.redirect:
                    self._send(307, b"", {"Location": server.redirect})
                    return
            self._send(200, json.dumps(server.answer(url.path, parse_qs(url.query))).encode())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def _chunks(self):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            return b"".join(parts)

        def _send(self, status, body, headers=None):
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.uri = f"http://127.0.0.1:{http.server_port}"
    Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
