"""Everything that is wrong with Kubernetes objects, as far as it shows without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate

from tests.kubernetes import crd, other_kinds
from tests.kubernetes.operator_rules import operator_problems
from tests.kubernetes.pod_security import security_problems
from tests.kubernetes.secrets import secret_problems

KUBERNETES = kubernetes_validate.latest_version()
"""Version of the schemas of built-in kinds."""


class Checker:
    """Checks objects and counts what was checked, and what could not be."""

    def __init__(self) -> None:
        self.rules = crd.Rules()
        self.objects = 0
        self.pods = 0
        self.not_validated: set[str] = set()

    def problems(self, objects: list[dict[str, Any]]) -> list[str]:
        """One line for each problem of these objects."""
        found: list[str] = []
        for value in objects:
            self.objects += 1
            name = f"{value.get('kind')}/{(value.get('metadata') or {}).get('name')}"
            lines = [*self._schema(value), *operator_problems(value), *secret_problems(value)]
            for where, pod in pods_of(value):
                self.pods += 1
                lines += [f"{where}: {line}" for line in security_problems(pod)]
            found += [f"{name}: {line}" for line in lines]
        return found

    def _schema(self, value: dict[str, Any]) -> list[str]:
        version, kind = str(value.get("apiVersion")), str(value.get("kind"))
        if version.startswith("ray.io/"):
            if not crd.definitions():
                self.not_validated.add(f"{kind} (no definitions in {crd.folder()})")
                return []
            schema = crd.schema_of(kind, version.partition("/")[2])
            return (
                [f"no such kind in {version}"]
                if schema is None
                else crd.problems_of(value, schema, self.rules)
            )
        if (version, kind) in other_kinds.SCHEMAS:
            return self._other_kind(value, other_kinds.SCHEMAS[version, kind])
        try:
            kubernetes_validate.validate(value, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{'.'.join(map(str, error.absolute_path)) or 'object'}: {error.message[:300]}"]
        except kubernetes_validate.SchemaNotFoundError:
            return [f"no such kind in {version}"]
        return []

    @staticmethod
    def _other_kind(value: dict[str, Any], schema: dict[str, Any]) -> list[str]:
        fields = {**crd.HEAD, "spec": schema}
        whole = {"type": "object", "properties": fields, "required": ["spec", "metadata"]}
        return crd.problems_of(value, whole, crd.Rules())


def pods_of(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and spec of every pod that an object describes, the autoscaler's container included."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from pods_of(item, f"{where}.{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            path = f"{where}.{key}".lstrip(".")
            if (
                key == "spec"
                and isinstance(item, dict)
                and isinstance(item.get("containers"), list)
            ):
                yield path, item
            elif key == "headGroupSpec" and value.get("enableInTreeAutoscaling"):
                for inner, pod in pods_of(item, path):
                    autoscaler = _autoscaler(value.get("autoscalerOptions") or {}, pod)
                    yield inner, {**pod, "containers": [*pod["containers"], autoscaler]}
            else:
                yield from pods_of(item, path)


def _autoscaler(options: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
    """The container that KubeRay adds to the head's pod."""
    container = {"name": "autoscaler", "image": pod["containers"][0]["image"]}
    keys = ("image", "env", "envFrom", "resources", "securityContext", "volumeMounts")
    return container | {key: options[key] for key in keys if key in options}


def references(objects: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Kind and name of each ConfigMap, Secret and claim that pods of these objects use."""
    return {reference for value in objects for reference in _references(value)}


def _references(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict):
                for form, kind, name in _FORMS:
                    if key == form and name in item:
                        yield kind, item[name]
            yield from _references(item)


_FORMS = (
    ("configMapRef", "ConfigMap", "name"),
    ("configMapKeyRef", "ConfigMap", "name"),
    ("configMap", "ConfigMap", "name"),
    ("secretRef", "Secret", "name"),
    ("secretKeyRef", "Secret", "name"),
    ("secret", "Secret", "secretName"),
    ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
)
