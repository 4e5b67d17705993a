"""What a person needs to put a node into the field: its file, its sensors, its health, its service."""
