"""Train and fine-tune models under differential privacy, and prove it afterwards.

The public names and where they live stand in `__init__.pyi`; each is imported on first use, so that
verbs which need no torch start fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
