"""Modules of the user's own, which add heads, groupings, data sources and optimizers (docs/extend).

The variable GVC_PLUGINS names them, with commas. Workers inherit it.
"""

import importlib
import os
import sys
from pathlib import Path

from grouped_lm.errors import ConfigError, GvcError

VARIABLE = "GVC_PLUGINS"


def load_plugins() -> None:
    """Import the modules that GVC_PLUGINS names, from the current folder or from what is installed.

    Raises:
        GvcError: there is no such module, it cannot be imported, or it registers what is refused.
    """
    names = [name for name in (part.strip() for part in os.environ.get(VARIABLE, "").split(",")) if name]
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.append(here)
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{VARIABLE}={os.environ[VARIABLE]}: {name} cannot be imported ({error}): name a .py file of this "
                "folder without its .py, or an installed module"
            ) from error
        except GvcError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{VARIABLE}={os.environ[VARIABLE]}: {name} has a mistake ({type(error).__name__}: {error}): correct it"
            ) from error
