"""eStargz: a gzipped image layer that any runtime can unpack, and that a lazy one can read from the
middle.

    layout  the blob's shape: footer, TOC entries, landmarks, annotations
    toc     a TOC as a tree of files: hostile until proven otherwise
    codec   one gzip member in, one out
    source  any tar layer (gzip, zstd, none) spooled and listed
    members a member's tar header and TOC entry
    writer  tar members -> eStargz blob, parallel and reproducible
    reader  ranges of a blob -> its TOC, verified chunks
    convert OCI layout in, OCI layout of eStargz layers out
    layer_cache  layers that were converted before

The format is stargz-snapshotter's (docs/estargz.md there). Lesson: notebooks/03_lazy_pull.
"""
