"""`localmodel dev`: one command that starts, watches and ends the laptop cluster."""
