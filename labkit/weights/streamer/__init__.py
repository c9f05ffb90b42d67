"""`labkit-streamer`: weights from storage to their final place at the speed of the hardware,
readable in one sitting.

    load(model, "/models/1b", "cpu")                       # or s3://lab/models/1b, or device="cuda"

`stream` has the load and its options, `plan` what is read, `local` how a disk is read, `buffers`
where bytes land; a bucket's ranges come by `labkit.net.ranges`. Limit: bytes ÷ min(storage, memory
or PCIe bandwidth). Lesson: notebooks/05_streaming."""

from labkit.weights.streamer.stream import StreamOptions, in_parallel, load

__all__ = ["StreamOptions", "in_parallel", "load"]
