"""From a source to planned shards: catalog, plan, ingest."""
