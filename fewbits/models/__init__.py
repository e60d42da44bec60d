"""The only rooms that know a framework's model; one each."""
