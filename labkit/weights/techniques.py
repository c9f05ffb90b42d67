"""The weights layer's techniques: importing this module registers them."""
