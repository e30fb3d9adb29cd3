"""Which node reads which chunk, and who asks whom: pure decisions, shared by agents and the simulator. `Mesh`."""
