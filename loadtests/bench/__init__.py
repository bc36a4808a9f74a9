"""What pgleash costs, beside PgBouncer and a direct connection, on one machine in one run. `make bench` runs it.

Never add here: an assertion; what is too slow is for people to say.
"""
