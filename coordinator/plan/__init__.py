"""What decides, pure: a snapshot of the world goes in, a plan comes out."""
