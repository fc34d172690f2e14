"""Private names of other packages: all in the compat modules, all still there, none elsewhere."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

from genmod import compat

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "ray", "s3fs")
PRIVATE_TEXT = r"(torch|ray|s3fs)(\.\w+)*\._[\w.]+"
COMPAT = {
    ROOT / name for name in ("genmod/compat.py", "genmod/storage/compat.py", "cluster/compat.py")
}
FILES = sorted(
    path for room in ("genmod", "cluster", "pipelines") for path in (ROOT / room).rglob("*.py")
)


def test_torch_still_has_the_private_names():
    """What to do: look for a public name in the new torch, or raise the reason in genmod/compat.py."""
    assert hasattr(torch._C, "_will_engine_execute_node"), (
        "torch no longer has _C._will_engine_execute_node: compat.backward_reaches answers yes always, and "
        "gradient penalties compute gradients of weights that nothing uses"
    )
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise"), (
        "torch no longer has ops.mkldnn._linear_pointwise: genmod.nets.linear uses MKL, half as fast on AMD"
    )
    assert hasattr(torch.ops.aten, "convolution_backward"), (
        "torch no longer has ops.aten.convolution_backward: genmod.nets.convolution cannot compute gradients"
    )
    assert compat.TorchDispatchMode is not None


def test_s3fs_and_fsspec_still_have_the_private_names():
    from s3fs import S3FileSystem

    call = getattr(S3FileSystem, "_call_s3", None)
    sentence = (
        "s3fs no longer has S3FileSystem._call_s3(method, **parameters): genmod.storage.compat.call_s3 "
        "cannot send requests"
    )
    assert inspect.iscoroutinefunction(call), sentence
    assert list(inspect.signature(call).parameters)[:2] == ["self", "method"], sentence
    for method in ("cat_file", "exists", "info", "ls", "pipe_file", "rm"):
        assert inspect.iscoroutinefunction(getattr(S3FileSystem, f"_{method}", None)), (
            f"fsspec no longer has AsyncFileSystem._{method}: genmod.storage.compat.coroutine_of cannot "
            "give requests a deadline"
        )


def test_ray_still_has_the_private_names():
    from ray._private.runtime_env import constants, packaging
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.job_submission import JobSubmissionClient

    from cluster.compat import JOB_VARIABLE, UPLOAD_LOGGERS

    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == JOB_VARIABLE, (
        "Ray marks its jobs by another environment variable: change cluster.compat.JOB_VARIABLE"
    )
    assert {dashboard_sdk.__name__, sdk.__name__, packaging.__name__} == set(UPLOAD_LOGGERS), (
        "Ray reports uploads by other loggers: change cluster.compat.UPLOAD_LOGGERS"
    )
    request = getattr(JobSubmissionClient, "_do_request", None)
    assert callable(request), (
        "Ray no longer has JobSubmissionClient._do_request: cluster.compat.job_client sets no timeouts"
    )
    assert any(p.kind is p.VAR_KEYWORD for p in inspect.signature(request).parameters.values()), (
        "JobSubmissionClient._do_request no longer passes keywords to requests: "
        "cluster.compat.job_client cannot set a timeout"
    )


def test_ray_still_has_the_private_names_of_a_session():
    from ray._private import ray_constants
    from ray.experimental import internal_kv

    from cluster.process_group import LocalTorchBackend

    assert isinstance(getattr(ray_constants, "ENABLE_RAY_CLUSTER", None), bool), (
        "Ray no longer has ray_constants.ENABLE_RAY_CLUSTER: cluster.compat.loopback_kept is idle, and a "
        "local Ray listens on all interfaces"
    )
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", (
        "Ray reads another variable: change cluster.compat.loopback_kept"
    )
    assert callable(getattr(internal_kv, "internal_kv_get_gcs_client", None)), (
        "Ray no longer has internal_kv_get_gcs_client: cluster.compat.put_value cannot send heartbeats"
    )
    for method in ("on_start", "on_shutdown", "on_training_start"):
        assert callable(getattr(LocalTorchBackend, method, None)), (
            f"Ray's torch backend no longer has {method}: cluster.process_group starts no process group"
        )


def test_workers_search_no_folder_of_the_driver():
    from ray._private import services, state, worker

    from cluster.compat import job_config

    source = inspect.getsource(worker.connect)
    assert "job_config._py_driver_sys_path.extend(" in source, (
        "Ray passes the driver's folders on in another way: change cluster.compat.job_config"
    )
    config = job_config()
    config._py_driver_sys_path.extend(["/folder/of/a/user"])
    assert list(config._get_proto_job_config().py_driver_sys_path) == [str(ROOT)]
    assert callable(getattr(worker, "print_to_stdstream", None)), (
        "Ray prints lines of the raylet in another way: change cluster.compat.send_raylet_lines"
    )
    for name in ("actors", "jobs"):
        assert callable(getattr(state, name, None)), (
            f"Ray no longer has ray._private.state.{name}: cluster.compat.other_jobs names no holder"
        )
    assert callable(getattr(services, "canonicalize_bootstrap_address_or_die", None)), (
        "Ray finds a running cluster by another name: change cluster.compat.address_of_running"
    )


def test_ray_train_still_registers_its_handler_by_a_method():
    import inspect

    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert "signal.signal(" in inspect.getsource(DataParallelTrainer._register_sigint_handler), (
        "Ray Train handles SIGINT in another way: change cluster.compat.interruptible_trainer"
    )


def test_the_engine_says_which_gradients_are_needed():
    answers = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, gradient):
            answers.append([compat.backward_reaches(node) for node, _ in ctx.next_functions])
            x, w = ctx.saved_tensors
            return gradient * w, gradient * x

    x, w = (torch.randn(3, requires_grad=True) * 1 for _ in range(2))  # no leaves
    y = Noted.apply(x, w).sum()
    torch.autograd.grad(y, x, retain_graph=True)
    torch.autograd.grad(y, (x, w))
    assert answers == [[True, False], [True, True]]


@pytest.mark.skipif(not compat.HAS_ONEDNN_LINEAR, reason="this torch is built without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_computes_the_linear_layer(bias):
    layer, x = nn.Linear(20, 30, bias=bias), torch.randn(7, 20)
    with torch.no_grad():
        torch.testing.assert_close(
            compat.onednn_linear(x, layer.weight, layer.bias), layer(x), rtol=1e-5, atol=1e-5
        )

    class Names(compat.TorchDispatchMode):
        seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Names() as names, torch.no_grad():
        compat.onednn_linear(x, layer.weight, layer.bias)
    assert compat.ONEDNN_LINEAR in names.seen


def test_gradients_of_a_convolution_are_torchs():
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    x_BCHW = torch.randn(4, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    y_BNHW = layer(x_BCHW)
    g_BNHW = torch.randn_like(y_BNHW)
    expected = torch.autograd.grad(y_BNHW, (x_BCHW, layer.weight, layer.bias), g_BNHW)
    found = compat.conv2d_gradients(
        g_BNHW, x_BCHW.detach(), layer.weight.detach(), (True, True, True)
    )
    torch.testing.assert_close(found, expected)
    by_image = compat.conv2d_gradients(
        g_BNHW, x_BCHW.detach(), layer.weight.detach(), (True, False, False)
    )
    assert [gradient is None for gradient in by_image] == [False, True, True]


@pytest.mark.parametrize("package", ["torch", "ray", "s3fs", "fsspec"])
def test_packages_with_private_names_have_upper_limits(package):
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["s3"]]
    requirement = next(r for r in map(Requirement, texts) if r.name == package)
    assert any(limit.operator in ("<", "<=", "==", "~=") for limit in requirement.specifier), (
        requirement
    )


def private_names(tree):
    """Private names of PACKAGES that a file imports or reads, by what it imported from them."""
    roots: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PACKAGES:
                    local = alias.asname or alias.name.split(".")[0]
                    roots[local] = alias.name
                    if any(part.startswith("_") for part in alias.name.split(".")):
                        yield alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                roots[alias.asname or alias.name] = full
                if any(part.startswith("_") for part in full.split(".")):
                    yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts, owner = [node.attr], node.value
            while isinstance(owner, ast.Attribute):
                parts.append(owner.attr)
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in roots:
                full = ".".join([roots[owner.id], *reversed(parts)])
                if is_private(node.attr) or full.startswith("torch.ops."):
                    yield full
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            owner = ast.unparse(node.args[0])
            text = ast.unparse(node)
            named = node.func.id == "vars" or re.search(r", '_", text)
            if owner.split(".")[0] in roots and node.func.id in {"vars", "getattr"} and named:
                yield text
        elif isinstance(node, ast.Constant) and re.fullmatch(PRIVATE_TEXT, str(node.value)):
            yield node.value


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch._foreach_norm",
        "import torch\ntorch.ops.aten.mm",
        "import torch\nvars(torch)['_foreach_norm']",
        "import torch\ngetattr(torch, '_foreach_norm')",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "import ray as r\nr._private.services",
        "from ray import _private",
        "import logging\nlogging.getLogger('ray._private.runtime_env')",
        "from s3fs import S3FileSystem as FS\nFS._call_s3",
    ],
)
def test_private_names_are_found(text):
    assert list(private_names(ast.parse(text)))
    assert not list(private_names(ast.parse("import torch\nself._x\ntorch.nn.Linear")))


def foreign_private_names(tree):
    """Private attributes of objects other than self, which the file itself does not define."""
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    stored = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Name))
    own |= {ast.unparse(n).split(".")[-1] for n in stored if isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            owner = ast.unparse(node.value)
            if owner not in {"self", "cls"} and ast.unparse(node) != "os._exit":
                yield ast.unparse(node)


def test_foreign_private_names_are_found():
    found = foreign_private_names(ast.parse("async def f(fs):\n    return await fs._cat_file(1)"))
    assert list(found) == ["fs._cat_file"]
    text = (
        "class A:\n    def _f(self, other):\n        self._x = 1\n        return other._f, other._x"
    )
    assert not list(foreign_private_names(ast.parse(text)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_in_the_compat_modules_alone(path):
    tree = ast.parse(path.read_text())
    found = [*private_names(tree), *foreign_private_names(tree)]
    assert not found or path in COMPAT, found
