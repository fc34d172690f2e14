"""Checks of infra/k8s without a cluster: ``python -m tests.kubernetes``."""
