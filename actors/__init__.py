"""What runs on a node: the node agent and its data plane. Knows neither Ray nor Kubernetes."""

from actors.former_names import install

install()
