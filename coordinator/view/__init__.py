"""What a person sees of a cluster: objects in, rows and sentences out. Pure; the command line reads and draws."""
