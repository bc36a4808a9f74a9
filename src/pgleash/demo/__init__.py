"""The demo: a real PostgreSQL, a shop, a token issuer and the gateway, played as one story.

Never add here: anything that ``pgleash serve`` needs.
"""
