"""Loss terms that several objectives may share; one noun a file."""
