"""Prints the software bill of materials of an image as CycloneDX 1.6: sbom.py FOLDER ...

Run by the environment's own Python in the build. It lists the environment's Python packages, those below the
given prefixes, and the Debian packages of the file system; the same packages give the same text.
"""

import json
import sys
import uuid
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

_DEBIAN_STATUS = Path("/var/lib/dpkg/status")


def main() -> None:
    """Print the document on stdout."""
    folders = [
        str(p) for each in sys.argv[1:] for p in Path(each).glob("lib/python3.*/site-packages")
    ]
    python = {c["purl"]: c for c in map(_python, distributions(path=[*sys.path, *folders]))}
    debian = {c["purl"]: c for c in _debian()}
    components = [python[key] for key in sorted(python)] + [debian[key] for key in sorted(debian)]
    (own,) = [c for c in components if c["name"] == "genmod"]
    components.remove(own)
    text = json.dumps([own, *components], sort_keys=True)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, text)}",
        "version": 1,
        "metadata": {"component": own | {"type": "application"}},
        "components": components,
    }
    json.dump(document, sys.stdout, indent=1, sort_keys=True)


def _python(package: Distribution) -> dict[str, Any]:
    name = package.metadata["Name"]
    licence = package.metadata.get("License-Expression")
    return _component("pypi", name, name.lower().replace("_", "-"), package.version, licence)


def _debian() -> list[dict[str, Any]]:
    """Installed packages, from the database of dpkg; none where there is no such database."""
    if not _DEBIAN_STATUS.exists():
        return []
    found = []
    for paragraph in _DEBIAN_STATUS.read_text().split("\n\n"):
        lines = [line for line in paragraph.splitlines() if line[:1].strip() and ": " in line]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            found.append(_component("deb/debian", name, name, version, None))
    return found


def _component(kind: str, name: str, key: str, version: str, licence: str | None) -> dict[str, Any]:
    purl = f"pkg:{kind}/{quote(key)}@{quote(version, safe='')}"
    component = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return component | ({"licenses": [{"expression": licence}]} if licence else {})


main()
