"""Which node reads which chunk, and who asks whom: pure decisions, shared by agents and the simulator. `Mesh`."""

from actors.doors import doors

__getattr__ = doors(__name__, "mesh")
