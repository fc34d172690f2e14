"""Manifests: a stage is done if and only if its manifest exists.

A stage writes its files first and its manifest last, by a create-if-absent write. The manifest lists every
file with size and digest, and carries the fingerprint of the configuration and inputs. When a finished stage
runs again, it finds the manifest and does nothing. A manifest with another fingerprint belongs to other work
and is never overwritten.
"""

from genmod.manifest.dataset import DatasetManifest, ImageSpec, ShardEntry, Split, StoredShard
from genmod.manifest.files import content_name, find_problems, read_checked, read_listed, write_file
from genmod.manifest.folders import relative_folder
from genmod.manifest.one_class import check_same_class
from genmod.manifest.publishing import (
    MANIFEST_NAMES,
    check_done,
    claim,
    find_done,
    is_claimed,
    load_manifest,
    missing_manifest,
    publish,
    release_claim,
    require,
)
from genmod.manifest.schema import FORMAT, FileEntry, Manifest, ManifestT
from genmod.manifest.statistics import SPLITS, RowStats, dataset_metadata

__all__ = [
    "FORMAT",
    "MANIFEST_NAMES",
    "SPLITS",
    "DatasetManifest",
    "FileEntry",
    "ImageSpec",
    "Manifest",
    "ManifestT",
    "RowStats",
    "ShardEntry",
    "Split",
    "StoredShard",
    "check_done",
    "check_same_class",
    "claim",
    "content_name",
    "dataset_metadata",
    "find_done",
    "find_problems",
    "is_claimed",
    "load_manifest",
    "missing_manifest",
    "publish",
    "read_checked",
    "read_listed",
    "relative_folder",
    "release_claim",
    "require",
    "write_file",
]
