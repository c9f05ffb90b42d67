"""Bytes over HTTP: an emulated link that can only slow down, faults on demand, a server that sends
and a client that fetches.

    link    rate in total, rate a connection, time to first byte; presets with their sources
    faults  429/503, reset, truncation, corruption, one straggler; the same for the same seed
    head    heads of messages, read strictly and written safely: every server and client goes
        through it
    accept  the one accept loop: a thread a connection, bounds, pressure that passes
    guard   who may ask (no page of another origin), what listening to a network exposes
    server  keep-alive, ranges, counters, on wire (requests in) and sending (sendfile in paced
        slices out)
    serving the embedded registry or store as a process of its own, noted in the ledger
    http    one connection of the client, without copies; client: a pool of them, retries
    parts   which bytes, and where they go; ranges: many at once, hedged stragglers
    fetch   one object whole: resume, digests
    login   registries that ask for one: Bearer tokens, Basic; credentials: what podman and docker
        have stored

Lesson: notebooks/02_image_pull.
"""
