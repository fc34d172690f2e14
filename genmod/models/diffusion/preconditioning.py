"""A net's prediction turned into a denoiser of images: EDM's preconditioning, or DDPM's eps, x0 and v.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)                        Eq. 7, Karras et al. 2022

         c_skip                c_out                c_in              with s = sigma_data for edm, else 1
    edm  s^2 / (sigma^2 + s^2) sigma s c_in         1 / sqrt(sigma^2 + s^2)
    eps  1                     -sigma               the same: alpha of DDPM's x_t = alpha x
    x0   0                     1                    the same
    v    1 / (sigma^2 + 1)     -sigma c_in          the same

The coefficients are derived for data of mean 0, so x is taken relative to the mean of its channel.
Letters: B batch, C channels, H height, W width.

References:
    Elucidating the design space of diffusion-based generative models, Karras et al. 2022,
    https://arxiv.org/abs/2206.00364
    Denoising diffusion probabilistic models (eps), Ho et al. 2020, https://arxiv.org/abs/2006.11239
    Progressive distillation for fast sampling of diffusion models (x0 and v), Salimans and Ho 2022,
    https://arxiv.org/abs/2202.00512
    Variational diffusion models (Fourier features), Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from genmod.nets.unet import UNet

PredictionType = Literal["edm", "eps", "x0", "v"]
"""What the net predicts: EDM's mixture, the noise, the image, or v."""


class Denoiser(nn.Module):
    """D(x; sigma): the expected clean image given a noisy one."""

    mean_C11: Tensor

    def __init__(
        self,
        unet: UNet,
        mean: Sequence[float],
        sigma_data: float,
        fourier: Sequence[int] = (),
        prediction: PredictionType = "edm",
    ) -> None:
        """Build the denoiser.

        For each n of ``fourier``, F also receives sin and cos of w x, w = 2^n pi, which separate neighbouring
        pixel values (sec. 3.4, Kingma et al. 2021): 2 len(fourier) further channels for each. They are
        scaled by exp(-(w sigma)^2 / 2), the mean of a wave under the noise: in more noise they carry no
        information and make the solutions of the flow oscillate.

        Args:
            unet: the net F.
            mean: mean of each channel of clean images.
            sigma_data: standard deviation of clean images around the mean.
            fourier: exponents n of the Fourier features.
            prediction: what the net predicts.
        """
        super().__init__()
        self.unet = unet
        self.prediction: PredictionType = prediction
        self.fourier = tuple(fourier)
        self.sigma_data = sigma_data
        mean_C11 = torch.tensor(mean, dtype=torch.float64)[:, None, None]
        self.register_buffer("mean_C11", mean_C11, persistent=False)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor, class_B: Tensor | None = None) -> Tensor:
        """Denoise, in the precision of ``x_BCHW`` around a net in its own.

        Args:
            x_BCHW: noisy images.
            sigma_B: standard deviation of each image's noise.
            class_B: rows of the net's class embedding, None for a net without.
        """
        net_dtype = self.unet.stem.weight.dtype
        sigma_B111 = sigma_B[:, None, None, None]
        c_skip_B111, c_out_B111, c_in_B111 = self._coefficients(sigma_B111)
        c_noise_B = sigma_B.log() / 4
        mean_C11 = self.mean_C11.to(x_BCHW.dtype)
        centred_BCHW = x_BCHW - mean_C11
        scaled_BCHW = (c_in_B111 * centred_BCHW).to(net_dtype)
        inputs = [
            scaled_BCHW,
            *(wave.to(net_dtype) for wave in self.fourier_features(x_BCHW, sigma_B111)),
        ]
        scaled_BCHW = torch.cat(inputs, 1) if self.fourier else scaled_BCHW
        raw_BCHW = self.unet(scaled_BCHW, c_noise_B.to(net_dtype), class_B).to(x_BCHW.dtype)
        return mean_C11 + c_skip_B111 * centred_BCHW + c_out_B111 * raw_BCHW

    def fourier_features(self, x_BCHW: Tensor, sigma_B111: Tensor) -> Iterator[Tensor]:
        """The Fourier features, each (B, C, H, W): sine and cosine of each exponent, which fade in noise."""
        for n in self.fourier:
            frequency = 2.0**n * math.pi
            size_B111 = torch.exp(-0.5 * (frequency * sigma_B111) ** 2)
            yield size_B111 * torch.sin(frequency * x_BCHW)
            yield size_B111 * torch.cos(frequency * x_BCHW)

    def loss_weight(self, sigma_B: Tensor) -> Tensor:
        """lambda(sigma) = 1 / c_out^2: weights the squared error of the net's prediction alike. Table 1, EDM.

        With ``edm`` the loss of a new net is 1; with ``eps`` it is DDPM's L_simple.
        """
        return 1 / self._coefficients(sigma_B)[1] ** 2

    def _coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in."""
        scale = self.sigma_data if self.prediction == "edm" else 1.0
        variance = sigma**2 + scale**2
        c_in = variance.rsqrt()
        match self.prediction:
            case "edm":
                return scale**2 / variance, sigma * scale * c_in, c_in
            case "v":
                return 1 / variance, -sigma * c_in, c_in
            case "eps":
                return torch.ones_like(sigma), -sigma, c_in
            case "x0":
                return torch.zeros_like(sigma), torch.ones_like(sigma), c_in
