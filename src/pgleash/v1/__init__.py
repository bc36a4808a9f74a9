"""Generated from protos/pgleash/v1 by `make proto`; never edited by hand."""
