"""A registered model as an MLflow model: what it takes and returns, and where to run it. Nothing is pickled.

The folder of a version contains ``MLmodel``, which names :mod:`pipelines.tracking.serving` as the loader and
the folder ``data``: the model's files with their manifest, and the settings that requests are answered with.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from contextlib import suppress
from typing import Any

import yaml

from genmod.config import canonical_json
from genmod.serving.settings import SETTINGS_FILE, ServingSettings
from pipelines.tracking.client import import_client

MODEL_FOLDER = "model"
"""Folder of a run's artifacts for the model."""

DATA_FOLDER = "data"
"""Folder below it with the model's files."""

LOADER = "pipelines.tracking.serving"
"""Module that loads the model in a server."""

_PACKAGE = "genmod"
_REQUIREMENTS, _PYTHON_ENV, _CONDA_ENV = "requirements.txt", "python_env.yaml", "conda.yaml"


def model_files(settings: ServingSettings) -> dict[str, str]:
    """Text files of a version's folder, by their path in it.

    Args:
        settings: that requests are answered with.
    """
    python = platform.python_version()
    pip = ["pip", {"pip": [f"-r {_REQUIREMENTS}"]}]
    environments = {
        _PYTHON_ENV: {"python": python, "dependencies": [f"-r {_REQUIREMENTS}"]},
        _CONDA_ENV: {"name": _PACKAGE, "dependencies": [f"python={python}", *pip]},
    }
    return {
        "MLmodel": _mlmodel(settings),
        _REQUIREMENTS: "".join(f"{line}\n" for line in requirements()),
        **{name: yaml.safe_dump(content) for name, content in environments.items()},
        f"{DATA_FOLDER}/{SETTINGS_FILE}": canonical_json(settings.model_dump(mode="json")).decode(),
    }


def requirements() -> list[str]:
    """This package and everything that it requires, pinned to what is installed."""
    names = [_PACKAGE]
    with suppress(importlib.metadata.PackageNotFoundError):  # run from its sources
        for text in importlib.metadata.requires(_PACKAGE) or ():
            if "extra ==" not in text and (match := re.match(r"[A-Za-z0-9._-]+", text)):
                names.append(match[0])
    pins: list[str] = []
    for name in sorted(names):
        with suppress(importlib.metadata.PackageNotFoundError):  # of another platform
            pins.append(f"{name}=={importlib.metadata.version(name).split('+')[0]}")
    return pins


def _mlmodel(settings: ServingSettings) -> str:
    """The text of the file ``MLmodel``."""
    import_client()  # sets MLflow's environment before the first import
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    model: Any = Model(
        artifact_path=MODEL_FOLDER,
        signature=_signature(settings),
        metadata={"genmod_digest": settings.model_digest},
    )
    add_to_model(
        model,
        loader_module=LOADER,
        data=DATA_FOLDER,
        conda_env=_CONDA_ENV,
        python_env=_PYTHON_ENV,
        model_config={"device": "cpu"},  # MLflow lets a server change only what is here
    )
    return str(model.to_yaml())


def _signature(settings: ServingSettings) -> Any:
    """Columns and parameters of requests, and columns of answers."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    def schema(**columns: str) -> Any:
        return Schema([ColSpec(kind, name, required=False) for name, kind in columns.items()])

    samples = {"index": "long", "label": "long", "class": "string", "image": "binary"}
    numbers = dict.fromkeys(("nats", "stderr", "bits_per_dim"), "double")
    texts = dict.fromkeys(("likelihood", "estimator", "density", "measure"), "string")
    params = [
        ParamSpec("seed", "long", None),
        ParamSpec("micro_batch", "long", None),
        ParamSpec("options", "string", None),
    ]
    return ModelSignature(
        schema(**samples), schema(**samples, **numbers, **texts), ParamSchema(params)
    )
