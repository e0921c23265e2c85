"""Functions of the user's own, by the name "module:function".

A loss, an advantage, a source and a verifier may all be named so; they are found in the same way.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def own_function(name: str) -> Callable[..., Any]:
    """The function that "module:function" names, in a package or in the working folder.

    The working folder comes last, so that nothing in it hides a package. ValueError where there is
    no such function.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # commands that pip installs do not look there
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be imported ({error}): install its package, or start archer in the "
            "folder that holds it"
        ) from error
    if not callable(function):
        raise ValueError(f"{name} is a {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found
