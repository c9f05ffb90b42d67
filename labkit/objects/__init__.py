"""Object storage: an embedded store that speaks S3 and GCS's read paths, and a client that reads a
bucket in parallel ranges.

    store    the application: buckets and objects as plain files under one folder
    buckets  what is asked of a bucket: lists in pages
    gcs      Google's JSON and XML read paths over the same files
    disk     keys as paths, metadata beside them, multipart uploads
    sigv4    signatures: made by the client, checked by the store
    client   `Bucket("s3://lab/models/small")`: list, head, get, put, parallel ranges
    publish  a model directory into a bucket by hard link

Lesson: notebooks/02_image_pull, notebooks/05_streaming.
"""
