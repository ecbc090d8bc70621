"""The checkpoint of three skills that reports are tested on."""

from tests.exporter.reporting.conftest import several

__all__ = ["several"]
