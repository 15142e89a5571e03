"""Several processes: the process group, data and vocabulary parallelism."""
