"""The training program: `python -m train --config configs/NAME.py --workdir DIR`."""
