"""The device layer's techniques: importing this module registers them."""
