"""Config files, read by `gvc` and by `grouped_lm`."""
