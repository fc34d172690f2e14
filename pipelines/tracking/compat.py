"""What genmod uses of MLflow's model server beyond its documentation. A test fails when it is gone."""

from __future__ import annotations

import importlib
import os
from typing import Any

SERVER_VARIABLE = "__pyfunc_model_path__"
"""Environment variable that MLflow sets in the processes of its model server."""


def in_model_server() -> bool:
    """Whether this process is MLflow's model server, which loads a model before it makes its application."""
    return SERVER_VARIABLE in os.environ


def add_to_next_application(middleware: type, **settings: Any) -> None:
    """Add ASGI middleware to the FastAPI application that is made next.

    ``mlflow models serve`` has no limit of a request's size and no place to set one. It imports FastAPI and
    makes its application after the model is loaded, so the class is replaced until then.

    Args:
        middleware: called as ``middleware(app, **settings)``.
        **settings: its arguments.
    """
    fastapi: Any = importlib.import_module("fastapi")
    original: Any = fastapi.FastAPI

    def make(*args: Any, **kwargs: Any) -> Any:
        fastapi.FastAPI = original
        application = original(*args, **kwargs)
        application.add_middleware(middleware, **settings)
        return application

    fastapi.FastAPI = make
