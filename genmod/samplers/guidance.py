"""Classifier-free guidance: combines a conditional and an unconditional denoiser.

Letters: B batch, C channels, H height, W width.

References:
    Classifier-free diffusion guidance, Ho and Salimans 2022, https://arxiv.org/abs/2207.12598
    Applying guidance in a limited interval improves sample and distribution quality in diffusion models,
    Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from genmod.errors import ConfigError
from genmod.samplers.flow import FlowSolver
from genmod.samplers.ode import Denoise


def guided(
    conditional: Denoise,
    unconditional: Denoise,
    weight: float,
    interval: tuple[float, float | None] = (0.0, None),
) -> Denoise:
    """The guided denoiser D_u + weight (D_c - D_u), at noise levels in (low, high]; D_c at other levels.

    Args:
        conditional: D_c.
        unconditional: D_u.
        weight: 1 is D_c itself, without a second network evaluation. With any other weight samples are
            not draws from the model's p(x | label).
        interval: (low, high); a ``high`` of None is no limit.
    """
    low, high = interval

    def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
        with_label_BCHW = conditional(x_BCHW, sigma)
        if weight == 1.0 or not low < sigma or (high is not None and sigma > high):
            return with_label_BCHW
        without_BCHW = unconditional(x_BCHW, sigma)
        return without_BCHW + weight * (with_label_BCHW - without_BCHW)

    return denoise


_NFE_SWEEP_STEPS = {
    "heun": (3, 5, 9, 18),
    "ddim": (5, 9, 17, 35),
    "dpm_solver": (5, 9, 17),
    "unipc": (5, 9, 17),
}
"""Steps of each solver in :meth:`GuidedSolver.nfe_sweep`: 5, 9, 17 and 35 network evaluations."""


class GuidedSolver(FlowSolver):
    """The solver that turns noise into an image, with classifier-free guidance."""

    guidance: float = Field(default=1.0, ge=0, le=1e3)
    """Weight of classifier-free guidance: 1 for none, 0 to ignore the label, above 1 to amplify it."""
    guidance_low: float = Field(default=0.0, ge=0, le=1e6)
    """Guidance applies to noise levels above this one."""
    guidance_high: float | None = Field(default=None, gt=0, le=1e6)
    """Guidance applies to noise levels up to this one; None for no limit."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Every other solver and spacing, churn, and guidance with and without limits."""
        return (
            cls(solver="ddim", steps=4, spacing="cosine", guidance=2.0),
            cls(solver="dpm_solver", steps=5, spacing="linear"),
            cls(solver="unipc", steps=5, guidance=2.0, guidance_low=0.1, guidance_high=10.0),
            cls(solver="ancestral", steps=6, spacing="log"),
            cls(solver="consistency", steps=2),
            cls(steps=4, churn=20.0),
        )

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        if self.guidance_high is not None and self.guidance_low >= self.guidance_high:
            raise ValueError(
                f"guidance_low: got {self.guidance_low:g}, expected less than guidance_high="
                f"{self.guidance_high:g}"
            )
        return self

    def require_guidable(self, classes: int, label_drop: float) -> None:
        """Check that the model can be guided.

        Args:
            classes: number of classes; 0 for data without labels.
            label_drop: probability with which training dropped the label.

        Raises:
            ConfigError: guidance is set, but the model has no labels or was never trained without them.
        """
        if self.guidance != 1.0 and (not classes or label_drop == 0):
            reason = "net.label_drop is 0" if classes else "the data has no labels"
            raise ConfigError(
                f"diffusion: got sample.guidance={self.guidance:g}, but {reason}; set sample.guidance to 1"
            )

    @property
    def draws_from_p(self) -> bool:
        """Whether samples are draws from the model's p: enough steps, no churn, no guidance."""
        return (self.solves_the_flow or self.follows_the_process) and self.guidance == 1.0

    def nfe_sweep(self) -> tuple[tuple[str, int, Self], ...]:
        """(Solver, network evaluations, options) of each point, with the solvers that fit the model."""
        consistency_steps = {"consistency": (1, 2, 4)}
        sweep = consistency_steps if self.solver == "consistency" else _NFE_SWEEP_STEPS
        points = [
            self.model_copy(update={"solver": solver, "steps": steps, "churn": 0.0})
            for solver, counts in sweep.items()
            for steps in counts
        ]
        return tuple((point.solver, point.nfe, point) for point in points)

    @property
    def sampler(self) -> str:
        """Name for manifests and reports: solver, steps, spacing, churn and guidance."""
        spacing = f" {self.spacing}" if self.spacing != "edm" else ""
        churn = f", churn {self.churn:g}" if self.churn else ""
        guidance = f", guided {self.guidance:g}{self._interval}" if self.guidance != 1.0 else ""
        return f"{self.solver}-{self.steps}{spacing}{churn}{guidance}"

    @property
    def _interval(self) -> str:
        """The noise levels that guidance applies to; empty if to all."""
        low = f" above {self.guidance_low:g}" if self.guidance_low else ""
        high = f" up to {self.guidance_high:g}" if self.guidance_high is not None else ""
        return low + high
