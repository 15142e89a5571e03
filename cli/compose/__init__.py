"""The only package that uses Hydra: compose, check and explain configs."""
