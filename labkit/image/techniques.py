"""The image layer's techniques: importing this module registers them."""
