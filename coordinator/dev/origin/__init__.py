"""The sample origin: a hub and a web server that count what they serve, and fail when asked to."""
