"""The machine and the process: device, threads, signals, watchdog, files, terminal."""
