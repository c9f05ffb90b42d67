"""The snapshot layer's techniques: importing this module registers them."""
