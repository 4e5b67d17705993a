"""The demonstration: recordings of real people through a whole deployment, in real processes, on this machine."""
