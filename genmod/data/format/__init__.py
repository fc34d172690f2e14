"""The dataset on disk: codecs, keys, tars, shards, verification."""
