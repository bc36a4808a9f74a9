"""The token issuer tests use: the demo's. Never add here: code; it belongs where the demo can use it too."""

from pgleash.demo.issuer import Issuer

__all__ = ["Issuer"]
