"""Normalizing flows of neural splines."""

from genmod.models.flow.config import FlowConfig, FlowSample, FlowScore
from genmod.models.flow.model import Model
from genmod.models.flow.splines import BoxSpline

__all__ = ["BoxSpline", "FlowConfig", "FlowSample", "FlowScore", "Model"]
