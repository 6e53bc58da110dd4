"""Making S2FT known to PEFT.

After `register`, `peft.get_peft_model`, `PeftModel.from_pretrained` and saving treat S2FT as one of PEFT's own methods.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.model import S2FTModel
from featherweight.methods.s2ft.peft_type import NAME


def register() -> None:
    """Register S2FT with PEFT; calling it again changes nothing."""
    if PeftType(NAME) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=S2FTConfig, model_cls=S2FTModel, prefix=S2FTModel.prefix)
