"""The HTTP routes, thin: parse, call, answer."""
