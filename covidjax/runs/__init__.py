"""The work of the commands, one function each."""
