"""Removes credentials of this process from text that is logged, tracked or kept."""

from __future__ import annotations

import base64
import json
import os
import re

_NAMES = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS|KEY|KEY_ID)$", re.IGNORECASE)
"""Names of environment variables with credentials."""

_USERINFO = re.compile(r"://([^/?#@\s]{1,1000})@")
"""User and password in a URL, e.g. of a proxy."""

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


def _secrets() -> list[str]:
    """Credentials in the environment, as they are, in JSON and for HTTP; longer ones first."""
    values = {value for name, value in os.environ.items() if is_secret_name(name)}
    for value in os.environ.values():
        for found in _USERINFO.findall(value):
            values |= {found, found.partition(":")[2]}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{n}", "") for n in ("USERNAME", "PASSWORD"))
    if password:
        values.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    values |= {json.dumps(value)[1:-1] for value in values}
    return sorted((v for v in values if len(v) >= _MIN_CHARS), key=len, reverse=True)
