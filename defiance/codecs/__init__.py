"""Device-edge co-inference: an encoder on the device, a channel, a decoder at the edge."""
