"""Privacy accounting for differentially private training, without torch.

The public names and where they live stand in `__init__.pyi`; each is imported on first use, as
scipy takes longer to load than most commands take to run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
