"""HTTP to origins: connections, proxies, redirects, which addresses are allowed, and what answers mean."""
