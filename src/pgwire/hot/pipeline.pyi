# Everything in this module is C: it is used by pgwire.hot.relay alone.
