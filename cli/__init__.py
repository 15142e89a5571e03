"""The command line `gvc`."""
