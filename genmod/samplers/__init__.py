"""Samplers of diffusion models: solvers as pure functions over a denoiser, and their options."""
