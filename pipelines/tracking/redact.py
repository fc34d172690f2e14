"""Removes credentials of this process from text that is logged, tracked or kept."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

_NAMES = re.compile(
    r"(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS|KEY|KEY_ID|DSN|CONNECTION_STRING)$",
    re.IGNORECASE,
)
"""Names of environment variables with credentials."""

_USERINFO = re.compile(r"://([^/?#@\s]{1,1000})@")
"""User and password in a URL, e.g. of a proxy."""

_FILES = re.compile(
    r"(PASSWORD|SECRET|TOKEN|CREDENTIALS|KEY)S?_(FILE|PATH)$|_CREDENTIALS$", re.IGNORECASE
)
"""Names of environment variables with the path of a file with credentials."""

_KNOWN_FILES = ("~/.ray/auth_token", "~/.aws/credentials")
_FILE_BYTES = 64 << 10
"""Of a file with credentials; a longer one is none."""

_ASSIGNED = re.compile(
    r"""((?:password|passwd|passphrase|secret|credential|authorization|signature)[\w.-]{0,64}
        | (?:api|access|account|private|storage)[_-]?key(?:[_-]?id)? | token | cookie | sig)
    (\\{0,9}["']?\s{0,9}(?:[:=]|%3D)\s{0,9}\\{0,9}(?:["']?(?:basic|bearer)\s{1,9})?)
    ("(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[^\s&;,"'{}\[\]\\]+)""",
    re.IGNORECASE | re.VERBOSE,
)
"""A value after a name of a credential, as in JSON, YAML, settings, headers and queries of URLs."""

_FORMS = re.compile(
    r"""(?:-----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY-----|\A)
      [A-Za-z0-9+/=\s\\]*-----END\ [A-Z ]{0,40}PRIVATE\ KEY-----
    | -----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY-----[A-Za-z0-9+/=\s\\]*
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b
    | \beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?
    | (?<=bearer\ )[\w.~+/=-]{8,}
    | (?<=basic\ )[A-Za-z0-9+/=]{8,}
    | \b(?:hf|ghp|gho|ghs|github_pat|glpat|sk|xox[abp])[_-][\w-]{16,}""",
    re.VERBOSE | re.IGNORECASE,
)
"""Credentials with a form of their own: private keys, keys of AWS, JSON web tokens, tokens of services."""

_MIN_CHARS = 6
"""Shorter values are words, and are left as they are."""

REDACTED = "***"


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is taken for a credential."""
    return bool(_NAMES.search(name))


def redact(text: str) -> str:
    """Text in which every credential of the environment, and every user of a URL, is replaced.

    >>> redact("http://me:pw@host/x")
    'http://***@host/x'
    """
    for value in _secrets():
        if value in text:
            text = text.replace(value, REDACTED)
    return _USERINFO.sub(f"://{REDACTED}@", text)


def redact_foreign(text: str) -> str:
    """Text of other processes without credentials, also those that this process does not know.

    Besides what :func:`redact` replaces, these are contents of this user's files with credentials, values
    after names such as ``password``, and what has the form of a key or token. Rather too much is replaced.

    >>> redact_foreign('{"db_password": "a b"}, https://host/x?X-Amz-Signature=12ab&v=2')
    '{"db_password": ***}, https://host/x?X-Amz-Signature=***&v=2'
    """
    for value in sorted(_file_secrets(), key=len, reverse=True):
        text = text.replace(value, REDACTED)
    text = _FORMS.sub(REDACTED, redact(text))
    return _ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{REDACTED}", text)


def _file_secrets() -> set[str]:
    """Lines, and values of settings, of this user's files with credentials."""
    named = [value for name, value in os.environ.items() if _FILES.search(name)]
    found: set[str] = set()
    for path in map(Path, (*named, *map(os.path.expanduser, _KNOWN_FILES))):
        try:
            is_small = path.is_file() and path.stat().st_size <= _FILE_BYTES
            lines = path.read_text(errors="replace").splitlines() if is_small else []
        except (OSError, ValueError):
            continue
        for line in lines:
            value = line.partition("=")[2] if " = " in line or line.startswith("aws_") else line
            found |= {value.strip(), quote(value.strip(), safe="")}
    return {value for value in found if len(value) >= _MIN_CHARS and not value.startswith("[")}


def _secrets() -> list[str]:
    """Credentials in the environment, as they are, in JSON, URLs and for HTTP; longer ones first."""
    values = {value for name, value in os.environ.items() if is_secret_name(name)}
    for value in os.environ.values():
        for found in _USERINFO.findall(value):
            values |= {found, found.partition(":")[2]}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{n}", "") for n in ("USERNAME", "PASSWORD"))
    if password:
        values.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    values |= {json.dumps(value)[1:-1] for value in values} | {quote(v, safe="") for v in values}
    return sorted((v for v in values if len(v) >= _MIN_CHARS), key=len, reverse=True)
