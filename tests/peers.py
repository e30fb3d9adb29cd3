"""`tests.kit.peers` by its former name, for scripts outside of the repository that drive agents as tests do."""

from tests.kit.peers import *  # noqa: F403  # whatever it has
