"""The one folder that knows Hydra: compose, check and explain configs."""
