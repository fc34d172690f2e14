"""Exports a published model: files, a README.md that says how to use them, and a manifest."""

from __future__ import annotations

from typing import Literal

from genmod import storage
from genmod.config import fingerprint
from genmod.errors import ConfigError, GenmodError, sanitize
from genmod.export.onnx import (
    OPSET,
    OUTPUT,
    TOLERANCE,
    largest_difference,
    onnx_bytes,
    package_versions,
    require_packages,
)
from genmod.interface.model_store import PublishedModel, classes_of, load_model
from genmod.interface.portable import PortableNet
from genmod.interface.registry import family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest, check_done, claim, load_manifest, publish, write_file
from genmod.tensors import tensor_bytes

ExportFormat = Literal["onnx", "diffusers"]
"""``onnx``: a network for onnxruntime. ``diffusers``: a model of the package diffusers."""

NET_FILE, PRIOR_FILE, README = "model.onnx", "prior.safetensors", "README.md"

_KIND = "export"
_REMEDY = "name another folder with --out, or remove this one"


def export_model(root: str, out: str, kind: ExportFormat) -> tuple[Manifest, bool]:
    """Export a model's moving average, after running the result.

    Args:
        root: URL of the model's folder.
        out: URL of the folder to write.
        kind: the format.

    Returns:
        The manifest, and whether it was there before.

    Raises:
        ConfigError: the model does not fit the format, a package is missing, or ``out`` contains other work.
        DataError: the model is damaged.
        GenmodError: the result does not compute what the model does. Nothing was written.
    """
    published = ManifestSnapshot().model(root)
    model_class = family(published.config.family)
    if kind == "diffusers":
        raise ConfigError(
            f"{root} does not fit the format diffusers: {model_class.not_diffusers}; use --format onnx"
        )
    digest = published.manifest.digest
    expected = fingerprint(_KIND, kind, OPSET, digest)
    found = check_done(load_manifest(Manifest, out, _KIND), out, _KIND, expected, _REMEDY)
    if found is not None:
        return found, True
    require_packages()
    model = load_model(root)
    try:
        portable = model.portable_net()
    except ConfigError as error:
        raise ConfigError(f"{root} does not fit the format {kind}: {error}") from None
    data = onnx_bytes(portable)
    difference = largest_difference(data, portable)
    if difference > TOLERANCE:
        raise GenmodError(
            f"{root}: onnxruntime's images differ by {difference:.2g} from the model's, expected at most "
            f"{TOLERANCE:g}; nothing was written"
        )
    files = {NET_FILE: data}
    if portable.tensors:
        files[PRIOR_FILE] = tensor_bytes(portable.tensors)
    files[README] = _readme(published, portable, difference).encode()
    storage.check_writable(out)
    claim(out, expected)
    entries = tuple(write_file(out, path, content) for path, content in files.items())
    manifest = Manifest(
        kind=_KIND,
        fingerprint=expected,
        parents={"model": digest},
        files=entries,
        metadata={
            "format": kind,
            "family": published.config.family,
            "weights": "ema",
            "opset": OPSET,
            "inputs": [each.name for each in portable.inputs],
            "output": OUTPUT,
            "largest_difference": difference,
            "tolerance": TOLERANCE,
            "versions": package_versions(),
        },
    )
    return publish(out, manifest), False


def _readme(published: PublishedModel, portable: PortableNet, difference: float) -> str:
    """The page for people who use the file without genmod."""
    spec = published.config.spec
    shape = ", ".join(map(str, spec.shape))
    lines = [
        f"# A {published.config.family} model as ONNX",
        "",
        f"`{NET_FILE}`: float32, opset {OPSET}, the moving average of the weights. The batch axis B has "
        "any size.",
        "",
        "| input | values |",
        "|---|---|",
        *(f"| `{each.name}` | {each.description} |" for each in portable.inputs),
        "",
        f"Output `{OUTPUT}`: (B, {shape}) float32, {portable.output}.",
        "",
        portable.usage,
        "",
        "Pixels 0 to 255 are floor((image + 1) * 128), clamped to 0 to 255; pixel p is the value "
        "(p + 0.5) / 128 - 1.",
        "",
        f"Made of model {published.manifest.digest}. With onnxruntime on a CPU its images differed by at "
        f"most {difference:.2g} from those of genmod. They are not the images of `genmod sample`, whose "
        "inputs are genmod's own random numbers.",
        "",
    ]
    names = classes_of(published).class_names
    if names:
        shown = ", ".join(
            f"{number}: {sanitize(name[:80])}" for number, name in enumerate(names[:1000])
        )
        lines[-1:] = ["", f"Classes: {shown}.", ""]
    return "\n".join(lines)
