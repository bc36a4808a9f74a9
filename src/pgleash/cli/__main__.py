"""``python -m pgleash.cli``. Never add here: anything else."""

from pgleash.cli import main

main()
