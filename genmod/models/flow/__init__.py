"""Normalizing flows of neural splines."""

from genmod.models.flow.model import BoxSpline, FlowConfig, FlowSample, FlowScore, Model

__all__ = ["BoxSpline", "FlowConfig", "FlowSample", "FlowScore", "Model"]
