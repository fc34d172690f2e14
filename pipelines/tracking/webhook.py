"""Sends outcomes of commands to the webhook that the recipe names: signed, with retries, within a deadline.

The address is the recipe's alone: redirects are not followed and proxies of the environment are not used.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from pydantic import field_validator

from genmod import storage
from genmod.config import Config
from genmod.errors import ConfigError
from pipelines.tracking.redact import is_secret_name

TIMESTAMP_HEADER = "X-Genmod-Timestamp"
SIGNATURE_HEADER = "X-Genmod-Signature"
DELIVERY_HEADER = "X-Genmod-Delivery"

_ATTEMPTS = 4
_BACKOFF_S = 0.5
"""Pause before the second attempt; it doubles with each one."""

_REQUEST_S = 5.0
"""How long an attempt waits for the server."""

DELIVERY_S = 20.0
"""How long all attempts together may take."""


class WebhookConfig(Config):
    """The recipe's ``tracking.webhook``: who gets the outcomes of commands."""

    url: storage.WebhookUrl
    """Address that gets a POST with a small JSON document when a stage ends or fails."""
    secret_env: storage.VariableName
    """Environment variable with the secret of the signature: the header X-Genmod-Signature is ``sha256=`` and
    the HMAC-SHA256 of ``TIMESTAMP.BODY`` in hex. Its name ends with SECRET, TOKEN, KEY or PASSWORD."""

    @field_validator("secret_env")
    @classmethod
    def _check_secret_env(cls, name: str) -> str:
        if not is_secret_name(name):
            raise ValueError(
                "expected a name that ends with SECRET, TOKEN, KEY or PASSWORD: values of such variables "
                "are never logged"
            )
        return name


def check_secret(config: WebhookConfig) -> bytes:
    """The webhook's secret. ConfigError if its variable is not set."""
    if secret := os.environ.get(config.secret_env):
        return secret.encode()
    raise ConfigError(
        f"tracking.webhook.secret_env: the environment variable {config.secret_env} is not set; set it to "
        "the secret that the receiver knows, or remove tracking.webhook"
    )


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The signature of a body that is sent at a time, in seconds since 1970.

    >>> sign(b"key", "0", b"{}")[:14]
    'sha256=7314351'
    """
    return (
        f"sha256={hmac.new(secret, timestamp.encode() + b'.' + body, hashlib.sha256).hexdigest()}"
    )


def deliver(config: WebhookConfig, delivery: str, body: str, limit_s: float = DELIVERY_S) -> str:
    """Send a document, with retries; ends at its deadline and never raises.

    Args:
        config: address and secret.
        delivery: id of the document, the same each time that it is sent.
        body: the document.
        limit_s: deadline of all attempts in seconds.

    Returns:
        Why it was not accepted; empty if it was.
    """
    end_s = time.monotonic() + limit_s
    reasons = ["no answer in time"]

    def work() -> None:
        try:
            reasons.append(_with_retries(lambda: _post(config, delivery, body), end_s))
        except Exception as error:  # an outcome never ends the work
            reasons.append(f"{type(error).__name__}: {error}")

    # A server that sends byte by byte can hold a request beyond its timeout, so a thread waits for it.
    thread = threading.Thread(target=work, name="genmod-webhook", daemon=True)
    thread.start()
    thread.join(limit_s)
    return reasons[-1]


def _with_retries(post: Callable[[], int], end_s: float) -> str:
    """Call ``post`` until it is accepted or refused for good. Why it was not accepted; empty if it was."""
    reason, pause_s = "", _BACKOFF_S
    for attempt in range(_ATTEMPTS):
        if attempt:
            if time.monotonic() + pause_s > end_s:
                break
            time.sleep(pause_s)
            pause_s *= 2
        try:
            status = post()
        except (OSError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if 200 <= status < 300:
            return ""
        reason = f"status {status}"
        if status < 500 and status not in (408, 429):
            break
    return reason


def _post(config: WebhookConfig, delivery: str, body: str) -> int:
    """Send a document once; the status of the answer."""
    url, data = urlsplit(config.url), body.encode()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "genmod",
        DELIVERY_HEADER: delivery,
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: sign(check_secret(config), timestamp, data),
    }
    secure = url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=_REQUEST_S)
    try:
        connection.request("POST", url.path or "/", data, headers)
        return connection.getresponse().status
    finally:
        connection.close()
