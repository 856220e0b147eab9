from . import clipping as clipping
from . import losses as losses
from . import optim as optim
from . import postprocess as postprocess
from .budget.plan import Plan as Plan
from .budget.plan import make_plan as make_plan
from .diagnosis.model_check import check_model as check_model
from .engine.guarantee import Guarantee as Guarantee
from .engine.private_training import PrivateTraining as PrivateTraining
from .errors import BudgetExceededError as BudgetExceededError
from .errors import DpclipError as DpclipError
from .errors import InputError as InputError
from .errors import PrivacyError as PrivacyError
from .loop.make_private import make_private as make_private
from .loop.resume import resume as resume

__version__: str
