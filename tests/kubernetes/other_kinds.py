"""Kinds of other projects that infra/k8s uses, of which no definition is here: the fields that it may use."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string", "minLength": 1}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
_LABEL_MAP = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
    }


_ENDPOINT = _object(("port",), port=_TEXT, path=_TEXT, interval=_DURATION, scrapeTimeout=_DURATION)

_RULE = _object(
    ("alert", "expr", "labels", "annotations"),
    alert={"type": "string", "pattern": "^[A-Za-z_]+$"},
    expr=_TEXT,
    labels=_LABEL_MAP,
    annotations=_LABEL_MAP,
    **{"for": _DURATION},
)
_RULE_GROUP = _object(
    ("name", "rules"), name=_TEXT, rules={"type": "array", "items": _RULE, "minItems": 1}
)

SCHEMAS: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _object(
        ("selector", "podMetricsEndpoints"),
        selector=_object(("matchLabels",), matchLabels=_LABEL_MAP),
        podTargetLabels={"type": "array", "items": _TEXT},
        podMetricsEndpoints={"type": "array", "items": _ENDPOINT, "minItems": 1},
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _object(
        ("groups",), groups={"type": "array", "items": _RULE_GROUP, "minItems": 1}
    ),
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): _object(("clusterQueue",), clusterQueue=_TEXT),
}
"""API version and kind -> schema of ``spec``, written from the projects' documentation."""
