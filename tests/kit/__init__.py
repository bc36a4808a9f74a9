"""Instruments that tests are made with: independent of the code under test, or doubles of other people's servers."""
