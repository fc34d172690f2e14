"""From bytes to batches: sources, codecs, shards, order, reader."""
