"""From bytes to batches: sources, sharding, codecs, row order, readers."""

from genmod.data.reading.webdataset_pipeline import webdataset

__all__ = ["webdataset"]
