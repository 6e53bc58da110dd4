"""S2FT: train a few attention heads and feed-forward channels, and put the resulting adapters to work.

Importing this package makes the method known to PEFT: `peft.get_peft_model(model, fw.S2FTConfig())` and
`PeftModel.from_pretrained` then work as for PEFT's own methods.
Source: arXiv 2412.06289.
"""

from featherweight.methods.s2ft.adapter import Adapter, fuse_adapters
from featherweight.methods.s2ft.bank import AdapterBank
from featherweight.methods.s2ft.calibration import select
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.difference import diff, import_official
from featherweight.methods.s2ft.export import export_lora
from featherweight.methods.s2ft.fuse import fuse
from featherweight.methods.s2ft.grouped_query import HeadPlan, plan_heads
from featherweight.methods.s2ft.model import S2FTModel
from featherweight.methods.s2ft.permutation import permute, unpermute
from featherweight.methods.s2ft.registration import register
from featherweight.methods.s2ft.switch import refresh, switch

register()

__all__ = [
    "Adapter",
    "AdapterBank",
    "HeadPlan",
    "S2FTConfig",
    "S2FTModel",
    "diff",
    "export_lora",
    "fuse",
    "fuse_adapters",
    "import_official",
    "permute",
    "plan_heads",
    "refresh",
    "register",
    "select",
    "switch",
    "unpermute",
]
