"""Channel feedback: what a device tells its base station about the downlink, by rule and learned."""
