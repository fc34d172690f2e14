"""Answers requests with a published model: samples by index and scores of images. Knows no server."""
