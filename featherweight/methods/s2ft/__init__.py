"""S2FT: train a few attention heads and feed-forward channels, and put the resulting adapters to work.

Importing this package makes the method known to PEFT: `peft.get_peft_model(model, fw.S2FTConfig())` and
`PeftModel.from_pretrained` then work as for PEFT's own methods.
Source: arXiv 2412.06289.
"""

from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.model import S2FTModel
from featherweight.methods.s2ft.registration import register

register()

__all__ = ["S2FTConfig", "S2FTModel", "register"]
