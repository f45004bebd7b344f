"""Folders and files in buckets: `gs://BUCKET/PATH` and `s3://BUCKET/PATH`.

All other code works on local files: an address stands for a copy of it in `cache_folder()`, which
`local` fills from the bucket. What is written to the copy is put into the bucket: files by `put`,
and the workdir of a run in training by its `Mirror`.

    addresses  what an address is, and where its copy is
    buckets    the objects of a bucket: read, written and listed, with retries
    index      the list of the files of a run
    copies     local copies of what is at an address
    mirror     what a run puts into its bucket, and which process may

A run in a bucket has two files that one in a folder has not:

    ADDRESS/.index.json   {"number": N, "files": {NAME: [bytes, SHA-256]}}
    ADDRESS/.writer       the process that trains there; renewed while it does

The index is written last, under one name. So a checkpoint whose objects are not all there is never
named, one that is damaged differs from its digests, and listings, which may lag behind in some
stores, are only used for folders without an index, such as data. Names that begin with a dot belong
to one machine, and are not copied.

`etils.epath`, by which Orbax and TFDS read addresses, stands on fsspec, as this does, so
credentials and endpoints are the same. The paths of a run are not epath's all the same: objects
cannot be locked, renamed or appended to, and outside gs:// Orbax finishes a checkpoint by renaming
its folder, which no store does at once.
"""

from jaxconv.cloud.addresses import (
    address_of,
    cache_folder,
    is_address,
    place_of,
    with_addresses,
)
from jaxconv.cloud.copies import fetch_checkpoints, local, refresh
from jaxconv.cloud.index import number_of
from jaxconv.cloud.mirror import Mirror, in_use, is_foreign, is_taken, push, put, set_aside

__all__ = [
    "Mirror",
    "address_of",
    "cache_folder",
    "fetch_checkpoints",
    "in_use",
    "is_address",
    "is_foreign",
    "is_taken",
    "local",
    "number_of",
    "place_of",
    "push",
    "put",
    "refresh",
    "set_aside",
    "with_addresses",
]
