"""lazyfs: merged image layers as a read-only FUSE mount whose bytes arrive when they are
touched.

    wire       the FUSE kernel protocol, as bytes
    mount      /dev/fuse as root, fusermount3 for everybody else; unmounting
    tree       TOCs merged into one tree: whiteouts, opaque directories, hard links
    cache      blobs on disk as sparse files, chunks in memory; verified on every read
    feed       what somebody waits for
    ahead      what nobody waits for yet: prefetch, then the rest
    transfers  ranges of blobs on their way to this disk
    remote     where blobs come from: a registry, or a layout on disk
    serve      the request loop
    stats      what was sent, from where, and who waited
    session    an image reference to a mounted directory, in a process of its own
    step       the node agent's: that process, and what it mounted
    lone_mount the same without an agent; trials are run on it

    REF=http://127.0.0.1:5000/lab/subject:esgz
    python -m labkit.image.lazyfs $REF /mnt/image --cache DIR --stats FILE

The kernel protocol is spoken directly over /dev/fuse: with opens answered once for all
(FUSE_NO_OPEN_SUPPORT), year-long entry and attribute times and negative entries, a warm mount costs
no round trips at all; a library binding costs one Python call and several copies for each. Lesson:
notebooks/03_lazy_pull."""
