"""What talks to Kubernetes and decides: observe, plan, apply. Drives the agents in `actors` through Ray."""

from actors.former_names import install

install()
