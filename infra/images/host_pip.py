"""Runs a build with the settings of this machine's pip: host_pip.py FOLDER COMMAND ...

FOLDER gets pip.conf, with the settings of `pip config list`, and ca.crt, the certificates in which pip
trusts. Folders of wheels on this machine are served on 127.0.0.1 while the command runs, so that the build
mounts none of them.
"""

import ast
import contextlib
import functools
import http.server
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

_LINE = re.compile(r"(?P<section>:env:|[\w-]+)\.(?P<key>[\w-]+)=(?P<value>'.*'|\".*\")")
_KEYS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "trusted-host",
    "proxy",
    "timeout",
    "retries",
)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def settings() -> dict[str, str]:
    """Settings of this machine's pip; variables of the environment count more than files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [match for match in map(_LINE.fullmatch, listed.splitlines()) if match]
    found.sort(key=lambda match: match["section"] == ":env:")
    return {match["key"]: ast.literal_eval(match["value"]) for match in found}


def serve(pages: Path) -> int:
    """Serve a folder on a free port of 127.0.0.1, which is returned."""
    handler = functools.partial(_Quiet, directory=str(pages))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def main() -> int:
    """Write the files, run the command, return its exit code."""
    folder, command, found = Path(sys.argv[1]), sys.argv[2:], settings()
    shutil.copyfile(found.get("cert") or "/dev/null", folder / "ca.crt")
    lines = ["[global]", *(["cert = /etc/pip-ca.crt"] if "cert" in found else [])]
    with contextlib.ExitStack() as stack:
        pages = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = 0

        def reachable(place: str) -> str:
            nonlocal port
            path = Path(urlsplit(place).path if place.startswith("file:") else place)
            if ("://" in place and not place.startswith("file:")) or not path.is_dir():
                return place
            port = port or serve(pages)
            link = pages / str(len(list(pages.iterdir())))
            link.symlink_to(
                path.parent
            )  # an index has links to files in other folders below its parent
            return f"http://127.0.0.1:{port}/{link.name}/{path.name}/"

        for key in _KEYS:
            if key in found:
                lines.append(f"{key} = {' '.join(map(reachable, found[key].split()))}")
        if port:
            lines.append("trusted-host = 127.0.0.1")
        (folder / "pip.conf").write_text("\n".join(lines) + "\n")
        return subprocess.run(command, check=False).returncode


sys.exit(main())
