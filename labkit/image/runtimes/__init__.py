"""The runtimes that start the server: a runc container, user namespaces, or a plain process of the
image's own interpreter.

One meaning: the image's files, the image's environment, the host's network (the port is on
loopback), no descriptor of the host but /dev/null and pipes – a file would break a later CRIU dump.
The node agent drains the pipe, dies with the trial, and takes the server along. Each runtime is a
module with one function, a step of the node agent:

    start(ctx: StepContext) -> facts    # ctx.state: rootfs, image_config → server_pid, server_log

    process     no namespaces, as anybody
    userns      user, mount and pid namespaces without root; `enter` is its first process
    runc        a container under root
    server      what the server is given, whatever starts it: command, environment, binds, a pipe
    container   the root directory that a container gets
    driver      the host's NVIDIA driver in an image
    resident    a process that is on the node before t0
    techniques  the stack layer `process`

Call `start` from the agent's main thread: the server is to die with its parent, and for the kernel
that is the thread. Limit: exec and dynamic linking, ~10 ms; runc adds 60–120 ms. Lesson:
notebooks/02_image_pull."""
