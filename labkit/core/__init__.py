"""The instrument: timeline, trials, cache state, records, statistics, floors. It knows nothing of
images, weights or GPUs."""
