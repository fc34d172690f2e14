"""Classifier-free guidance as a denoiser made of two. Letters: B batch, C channels, H height, W width.

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
    """D_u + weight (D_c - D_u) for noise levels in the interval (low, high], D_c elsewhere.

    A weight of 1 is the conditional denoiser itself and costs no second call. Any other weight gives
    images that are not draws from the model's p(x | label). A ``high`` of None is no limit.
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
"""Steps of each solver that :meth:`GuidedSolver.nfe_sweep` compares: 5, 9, 17 and 35 calls of the net."""


class GuidedSolver(FlowSolver):
    """The solver from noise to an image, and how strongly it follows the label."""

    guidance: float = Field(default=1.0, ge=0)
    """Classifier-free guidance: 1 for none, 0 to ignore the label, above 1 to exaggerate it."""
    guidance_low: float = Field(default=0.0, ge=0)
    """Guidance acts on noise levels above this one."""
    guidance_high: float | None = Field(default=None, gt=0)
    """And not above this one; None for no limit."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Every other solver and spacing, churn, and guidance with and without an interval."""
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
                f"guidance_low is {self.guidance_low:g}, but must be below guidance_high, "
                f"{self.guidance_high:g}: no noise level lies between"
            )
        return self

    def require_guidable(self, classes: int, label_drop: float) -> None:
        """ConfigError if guidance is asked for, of a net without labels or never trained without them."""
        if self.guidance != 1.0 and (not classes or label_drop == 0):
            why = "net.label_drop is 0" if classes else "the data has no labels"
            raise ConfigError(
                f"diffusion: sample.guidance is {self.guidance:g}, but {why}; set it to 1"
            )

    @property
    def draws_from_p(self) -> bool:
        """The flow itself, finely solved and without churn, or the noisy process; without guidance."""
        return (self.solves_the_flow or self.follows_the_process) and self.guidance == 1.0

    def nfe_sweep(self) -> tuple[tuple[str, int, Self], ...]:
        """(Solver, calls, options) from few calls to many; a consistency net has its own sampler alone."""
        few = {"consistency": (1, 2, 4)}
        rungs = few if self.solver == "consistency" else _NFE_SWEEP_STEPS
        points = [
            self.model_copy(update={"solver": solver, "steps": steps, "churn": 0.0})
            for solver, counts in rungs.items()
            for steps in counts
        ]
        return tuple((point.solver, point.nfe, point) for point in points)

    @property
    def sampler(self) -> str:
        """Solver, steps, and what makes the images other than draws from p."""
        spacing = f" {self.spacing}" if self.spacing != "edm" else ""
        churn = f", churn {self.churn:g}" if self.churn else ""
        guidance = f", guided {self.guidance:g}{self._interval}" if self.guidance != 1.0 else ""
        return f"{self.solver}-{self.steps}{spacing}{churn}{guidance}"

    @property
    def _interval(self) -> str:
        """Where guidance acts, if not everywhere."""
        low = f" above {self.guidance_low:g}" if self.guidance_low else ""
        high = f" up to {self.guidance_high:g}" if self.guidance_high is not None else ""
        return low + high
