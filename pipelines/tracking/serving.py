"""Loads a registered model in MLflow: ``mlflow models serve``, ``mlflow.pyfunc.load_model``.

MLflow imports this module by the name in the file ``MLmodel``. Two kinds of requests:

    index [, label]            images as PNG, with the bits of ``genmod sample``
    image [, label, index]     log-likelihoods

In place of ``label``, the number of a class, a request may have ``class``, its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from genmod.documents import validate
from genmod.errors import ConfigError, DataError, GenmodError, sanitize
from genmod.serving.served_model import ModelBusy, ServedModel
from genmod.serving.settings import Overrides
from pipelines.tracking import compat
from pipelines.tracking.request_guard import IS_GUARDED, RequestGuard


class LoadSettings(BaseModel):
    """The ``model_config`` of MLflow, in a server the variable ``SERVING_MODEL_CONFIG``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["cpu", "cuda"] = "cpu"


class Predictor:
    """What MLflow calls with the rows of a request.

    Args:
        model: that answers them.
        needs_guard: whether to refuse requests that no guard has checked.
    """

    def __init__(self, model: ServedModel, *, needs_guard: bool) -> None:
        self._model, self._needs_guard = model, needs_guard

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Answer a request with a row for each of its rows.

        Args:
            data: DataFrame with the columns ``index`` and ``label`` (int64) for images, or ``image`` (bytes
                of a PNG or JPEG), ``label`` and ``index`` for scores; ``class`` (text) in place of ``label``.
            params: ``seed``, ``micro_batch``, ``options`` in place of the registered ones.

        Returns:
            DataFrame: ``index``, ``label``, ``class`` (if classes have names) and ``image`` (PNG bytes), or
            ``nats``, ``stderr``, ``bits_per_dim`` and the label of these numbers.

        Raises:
            MlflowException: HTTP status 400 for a wrong request, 503 if the model is busy, else 500.
        """
        try:
            if self._needs_guard and not IS_GUARDED.get():
                raise GenmodError(
                    "this version of MLflow serves models in a way that genmod cannot limit; install the "
                    "one in the model's requirements.txt"
                )
            return type(data)(self._records(data, params or {}))
        except (ConfigError, DataError) as error:
            raise _refusal(error, "INVALID_PARAMETER_VALUE") from None
        except ModelBusy as error:
            raise _refusal(error, "TEMPORARILY_UNAVAILABLE") from None
        except GenmodError as error:
            raise _refusal(error, "INTERNAL_ERROR") from None
        except Exception as error:  # MLflow would call it the client's mistake
            raise _refusal(error, "INTERNAL_ERROR") from error

    def _records(self, data: Any, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        overrides = Overrides(
            seed=_optional_int(params.get("seed")),
            micro_batch=_optional_int(params.get("micro_batch")),
            options=params.get("options"),
        )
        indices, labels = _whole_numbers(data, "index"), _labels(data)
        if "image" in data:
            images: list[Any] = list(data["image"])
            if not all(isinstance(image, bytes) for image in images):
                raise DataError("column image does not contain bytes; send a PNG for each row")
            return self._model.score(images, labels, indices, overrides)
        if indices is None:
            raise DataError("no column index and none image; send one of them")
        return self._model.sample(indices, labels, overrides)


def _load_pyfunc(  # pyright: ignore[reportUnusedFunction]
    path: str, model_config: Mapping[str, Any] | None = None
) -> Predictor:
    """Load a model; MLflow calls this by its name.

    Args:
        path: folder with the model's files.
        model_config: see :class:`LoadSettings`.
    """
    is_server = compat.in_model_server()
    try:
        where, remedy = "model_config", "correct it, or leave it out"
        settings = validate(LoadSettings, model_config or {}, "a configuration", where, remedy)
        model = ServedModel(path, settings.device)
    except GenmodError as error:
        if is_server:
            raise SystemExit(f"genmod: error: {sanitize(str(error))}") from None
        raise _refusal(error, "INVALID_PARAMETER_VALUE") from None
    if is_server:
        compat.add_to_next_application(RequestGuard, limits=model.limits)
    return Predictor(model, needs_guard=is_server)


def _labels(data: Any) -> Sequence[int | str] | None:
    """Numbers or names of the rows' classes; None if the request has neither."""
    if "class" not in data:
        return _whole_numbers(data, "label")
    if "label" in data:
        raise DataError("columns label and class name the class of a row twice; leave one out")
    names: list[Any] = data["class"].tolist()
    if not all(isinstance(name, str) for name in names):
        raise DataError("column class does not contain a text in each row; correct it")
    return names


def _whole_numbers(data: Any, name: str) -> list[int] | None:
    """A column of whole numbers; None if it is not there."""
    if name not in data:
        return None
    values: list[Any] = data[name].tolist()
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise DataError(f"column {name} does not contain a whole number in each row; correct it")
    return values


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _refusal(error: BaseException, code: str) -> Exception:
    """An error as MLflow passes it to the client: one line with a status."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    known = isinstance(error, GenmodError)
    text = str(error) if known else f"unexpected {type(error).__name__}; see the server's log"
    return MlflowException(sanitize(text), error_code=getattr(databricks_pb2, code))
