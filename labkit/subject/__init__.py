"""The subject: what gets started. A reference inference server, its model, checkpoints of any size,
and how to read public ones."""
