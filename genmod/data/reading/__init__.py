"""Reads rows: random access, prefetching, training streams, summaries."""
