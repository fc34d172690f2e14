"""How the images of a dataset are stored: PNG, JPEG, WebP without loss, or NumPy's npy.

Letters: H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from genmod.data.format.codecs import Codec
from genmod.data.format.webp_npy import MAX_WEBP_SIDE, encode_webp, npy_head
from genmod.errors import ConfigError
from genmod.manifest import ImageSpec

ImageFormat = Literal["png", "jpeg", "webp", "npy"]
"""``jpeg`` changes pixels; the others keep every one."""

_EXTENSIONS: dict[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp", "npy": "npy"}

IMAGE_EXTENSIONS = tuple(_EXTENSIONS.values())
"""Extensions of the images in the tars of a dataset."""

DEFAULT_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Encoding:
    """A format with its settings."""

    format: ImageFormat = "png"
    jpeg_quality: int = DEFAULT_JPEG_QUALITY
    """1 to 100."""

    @property
    def suffix(self) -> str:
        """End of the names of images, with its dot."""
        return f".{_EXTENSIONS[self.format]}"

    @property
    def is_lossy(self) -> bool:
        """Whether images are decoded to other pixels than were encoded."""
        return self.format == "jpeg"

    def check(self, spec: ImageSpec) -> None:
        """ConfigError if images of a dataset cannot be stored like this."""
        if self.is_lossy and spec.levels == 2:
            raise ConfigError(
                "sample.image_format is jpeg, which changes pixels, but the images are binary; choose png, "
                "webp or npy"
            )
        if self.format == "webp" and max(spec.height, spec.width) > MAX_WEBP_SIDE:
            raise ConfigError(
                f"sample.image_format is webp, of at most {MAX_WEBP_SIDE:,} pixels a side, but the images "
                f"are {spec.height}x{spec.width}; choose png, jpeg or npy"
            )


class ImageEncoder:
    """Encodes the images of one dataset. Not thread-safe."""

    def __init__(self, spec: ImageSpec, encoding: Encoding) -> None:
        self._codec, self._is_lossy = Codec(spec), encoding.is_lossy
        self.encode = self._encoder(spec, encoding)
        """Encodes a uint8 image (H, W, C); the same pixels yield the same bytes."""

    def _encoder(self, spec: ImageSpec, encoding: Encoding) -> Callable[[NDArray[np.uint8]], bytes]:
        if encoding.format == "webp":
            return encode_webp
        if encoding.format == "npy":
            head = npy_head((spec.height, spec.width, spec.channels))
            return lambda image_HWC: head + image_HWC.tobytes()
        if encoding.format == "jpeg":
            # Colours are not subsampled: that would blur generated images, which are small.
            colours = ("GRAY", "Gray") if spec.channels == 1 else ("RGB", "444")
            return lambda image_HWC: simplejpeg.encode_jpeg(
                np.ascontiguousarray(image_HWC), encoding.jpeg_quality, *colours, fastdct=False
            )
        return self._codec.encode

    def stored(self, image_HWC: NDArray[np.uint8]) -> tuple[bytes, NDArray[np.uint8]]:
        """Encode a uint8 image; also returns the pixels that readers get, (H, W, C)."""
        blob = self.encode(image_HWC)
        if not self._is_lossy:
            return blob, image_HWC
        return blob, self._codec.decode([blob])[0].transpose(1, 2, 0)
