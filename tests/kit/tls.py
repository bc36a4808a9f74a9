"""The certificates tests use: the demo's. Never add here: code; it belongs where the demo can use it too."""

from pgleash.demo.tls import Certificates, make_certificates

__all__ = ["Certificates", "make_certificates"]
