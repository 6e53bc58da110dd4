"""S2FT among the methods that PEFT knows."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
from s2ft_models import with_adapters

import featherweight as fw


def test_registration_twice_pickle_and_every_look_up():
    import pickle

    fw.s2ft.register()
    fw.s2ft.register()
    kind = peft.PeftType.S2FT

    assert kind is peft.PeftType("S2FT") is peft.PeftType["S2FT"] and kind in list(peft.PeftType)
    assert copy.deepcopy(kind) is kind and pickle.loads(pickle.dumps(kind)) is kind
    assert json.dumps({"peft_type": kind}) == '{"peft_type": "S2FT"}' and kind == "S2FT"
    config = pickle.loads(pickle.dumps(fw.S2FTConfig(num_channels=8)))
    assert config.num_channels == 8 and config.peft_type is kind
    assert len(list(peft.PeftType)) == len(set(peft.PeftType))


@pytest.mark.parametrize(
    "order", ["import featherweight, peft", pytest.param("import peft, featherweight", marks=pytest.mark.slow)]
)
def test_a_fresh_process_opens_an_adapter_after_importing_featherweight(order, tmp_path):
    with_adapters(default={}).save_pretrained(tmp_path)
    program = (
        f"{order}, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2] / 'reference')!r})\n"
        "from causal_models import causal_model\n"
        f"model = peft.PeftModel.from_pretrained(causal_model('llama'), {str(tmp_path)!r})\n"
        "print(type(model.base_model).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)

    assert done.stdout.split() == ["S2FTModel"], done.stderr[-2000:]
