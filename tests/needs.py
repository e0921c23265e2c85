"""What some tests need of the machine; they are skipped where it is not there."""

from __future__ import annotations

import sys

import pytest

needs_sandbox = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
