"""Loaders: `load(model, source, device, **options) -> facts`, one module a way of loading.
`labkit.weights.loaders.catalog` lists them."""
